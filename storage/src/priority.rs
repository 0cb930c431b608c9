//! How the scheduler treats threads: those whose work somebody waits for come before those that tidy up.
//!
//! By shares of time alone a flush or a merge that has just begun its slice of 3 ms keeps the core while a commit
//! whose sync is done waits for it. Slices say who may interrupt whom (kernels since 6.12: whoever wakes with the
//! shorter one takes the core at once; older ones pay no heed). The commit thread interrupts even reactors: what waits
//! for it is a whole group, and a reactor that has run ahead while another wanted its core is later made to wait for
//! that, a tick of 4 ms at a time. Measured with everything on one core, 20,000 signed events a second and an engine
//! that never rests: p99 of the acknowledgements 11 ms in place of 24 ms with the same slice for both.
//!
//! Nice values say who gets more of the time: flushes and merges take what nobody else wants, or a tenth of a share. All
//! of it only affects speed, so a refusal of the kernel is ignored.
#![allow(unsafe_code)]

/// Slice of the commit thread: the shortest that the kernel knows.
const COMMIT_SLICE_NS: u64 = 100_000;
/// Slice of a reactor.
const REACTOR_SLICE_NS: u64 = 1_000_000;
/// Slice of a thread that tidies up. Threads that make batches of work lose little when they are interrupted.
const PATIENT_SLICE_NS: u64 = 20_000_000;
/// What a thread that tidies up adds to its nice value.
const PATIENT_NICE: i32 = 10;

/// Lets the calling thread interrupt all others when it wakes. Threads that it starts do not inherit this.
pub(crate) fn commit_thread() {
    set(libc::SCHED_OTHER, libc::SCHED_FLAG_RESET_ON_FORK as u64, COMMIT_SLICE_NS, 0);
}

/// Lets the calling thread interrupt those that compute or tidy up when it wakes. For threads that sleep often and work
/// for moments. Threads that it starts do not inherit this.
pub fn reactor_thread() {
    set(libc::SCHED_OTHER, libc::SCHED_FLAG_RESET_ON_FORK as u64, REACTOR_SLICE_NS, 0);
}

/// Lets others interrupt the calling thread, and it none. Threads that it starts inherit this.
pub(crate) fn patient_thread() {
    set(libc::SCHED_BATCH, 0, PATIENT_SLICE_NS, PATIENT_NICE);
}

fn set(policy: libc::c_int, flags: u64, slice_ns: u64, nicer: i32) {
    // SAFETY: all of the structure's fields are integers, for which zero is a value.
    let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
    wanted.size = size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = policy as u32;
    wanted.sched_flags = flags;
    wanted.sched_runtime = slice_ns;
    // SAFETY: getpriority(2) takes two integers; 0 is the calling thread. sched_setattr(2) reads `size` bytes of the
    // structure, which lives through the call.
    unsafe {
        wanted.sched_nice = (libc::getpriority(libc::PRIO_PROCESS, 0) + nicer).min(19);
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy and nice value.
    fn standing() -> (libc::c_int, i32) {
        // SAFETY: both take integers, of which 0 is the calling thread.
        unsafe { (libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK, libc::getpriority(libc::PRIO_PROCESS, 0)) }
    }

    #[test]
    fn threads_of_a_patient_thread_are_patient_and_those_of_a_prompt_one_are_as_others() {
        let (_, nice) = standing();
        let parent_and_child = |parent: fn()| {
            let run = move || {
                parent();
                [standing(), std::thread::spawn(standing).join().expect("a thread")]
            };
            std::thread::spawn(run).join().expect("a thread")
        };
        assert_eq!(parent_and_child(patient_thread), [(libc::SCHED_BATCH, (nice + PATIENT_NICE).min(19)); 2]);
        assert_eq!(parent_and_child(commit_thread), [(libc::SCHED_OTHER, nice); 2]);
        assert_eq!(parent_and_child(reactor_thread), [(libc::SCHED_OTHER, nice); 2]);
    }
}
