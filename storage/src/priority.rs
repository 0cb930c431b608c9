//! How the scheduler treats threads: those whose work somebody waits for come before those that tidy up.
//!
//! By shares of time alone a flush or a merge that has just begun its slice of 3 ms keeps the core while a commit
//! whose sync is done waits for it. Slices say who may interrupt whom (kernels since 6.12: whoever wakes with the
//! shorter one takes the core at once; older ones pay no heed); nobody gets more of the time by them. All of it only
//! affects speed, so a refusal of the kernel is ignored.
#![allow(unsafe_code)]

/// Slice of a thread that somebody waits for: the shortest that the kernel knows.
const PROMPT_SLICE_NS: u64 = 100_000;
/// Slice of a thread that tidies up. Threads that make batches of work lose little when they are interrupted.
const PATIENT_SLICE_NS: u64 = 20_000_000;

/// Lets the calling thread interrupt others when it wakes. For threads that sleep often and work for moments: the
/// commit thread, reactors. Threads that it starts do not inherit this.
pub fn prompt_thread() {
    set(libc::SCHED_OTHER, libc::SCHED_FLAG_RESET_ON_FORK as u64, PROMPT_SLICE_NS);
}

/// Lets others interrupt the calling thread, and it none. Threads that it starts inherit this.
pub(crate) fn patient_thread() {
    set(libc::SCHED_BATCH, 0, PATIENT_SLICE_NS);
}

fn set(policy: libc::c_int, flags: u64, slice_ns: u64) {
    // SAFETY: all of the structure's fields are integers, for which zero is a value.
    let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
    wanted.size = size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = policy as u32;
    wanted.sched_flags = flags;
    wanted.sched_runtime = slice_ns;
    // SAFETY: getpriority(2) takes two integers; 0 is the calling thread. sched_setattr(2) reads `size` bytes of the
    // structure, which lives through the call.
    unsafe {
        wanted.sched_nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: sched_getscheduler(2) takes an integer; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }

    #[test]
    fn threads_of_a_patient_thread_are_patient_and_those_of_a_prompt_one_are_not() {
        let child = |parent: fn()| {
            let run = move || {
                parent();
                (policy(), std::thread::spawn(policy).join().expect("a thread"))
            };
            std::thread::spawn(run).join().expect("a thread")
        };
        assert_eq!(child(patient_thread), (libc::SCHED_BATCH, libc::SCHED_BATCH));
        assert_eq!(child(prompt_thread), (libc::SCHED_OTHER, libc::SCHED_OTHER));
    }
}
