//! Priority of the calling thread.
#![allow(unsafe_code)]

/// How long a lowered thread may hold a core that others want, unless they are woken: then it leaves at once, because
/// theirs is the shorter slice (kernels since 6.12; older ones pay no heed to it).
const SLICE_NS: u64 = 20_000_000;

/// Lets this thread yield to others: 0 changes nothing, 19 runs only when nobody else wants the core. A lowered thread
/// never takes a core from others when it wakes (SCHED_BATCH) and gives it up to whoever else wakes: those answer
/// somebody who waits. A refusal is logged and otherwise ignored: the thread then works at normal priority.
pub(crate) fn lower(nice: i32) {
    if nice == 0 {
        return;
    }
    let refused = set_batch(nice) != 0 && {
        // Container profiles may forbid the newer call.
        // SAFETY: gettid has no arguments and setpriority reads only its three integers; on Linux both act on one thread.
        unsafe {
            let thread = libc::gettid() as libc::id_t;
            libc::setpriority(libc::PRIO_PROCESS, thread, nice) != 0
        }
    };
    if refused {
        tracing::warn!(nice, "cannot lower the priority of a thread");
    }
}

/// 0 when the kernel took it.
fn set_batch(nice: i32) -> libc::c_long {
    // SAFETY: all of the structure's fields are integers, for which zero is a value.
    let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
    wanted.size = size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = libc::SCHED_BATCH as u32;
    wanted.sched_nice = nice;
    wanted.sched_runtime = SLICE_NS;
    // SAFETY: sched_setattr(2) reads `size` bytes of the structure, which lives through the call; 0 is this thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) }
}
