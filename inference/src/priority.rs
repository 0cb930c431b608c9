//! Priority of the calling thread.
#![allow(unsafe_code)]

/// Lets this thread yield to others: 0 changes nothing, 19 runs only when nobody else wants the core. A refusal is
/// logged and otherwise ignored: the thread then works at normal priority.
pub(crate) fn lower(nice: i32) {
    if nice == 0 {
        return;
    }
    // SAFETY: gettid has no arguments and setpriority reads only its three integers; on Linux both act on one thread.
    let refused = unsafe {
        let thread = libc::gettid() as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread, nice) != 0
    };
    if refused {
        tracing::warn!(nice, "cannot lower the priority of a thread");
    }
}
