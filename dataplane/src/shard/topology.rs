//! Which cores the process may use, and pinning of threads to them.
//!
//! The list comes from `sched_getaffinity`, so a container's CPU set and `taskset` are
//! respected; the NUMA node of each core comes from sysfs. Memory follows the thread:
//! Linux places a page on the node of the thread that first touches it, and every shard
//! builds its own state on its own pinned thread.
#![allow(unsafe_code)]

use std::io;

/// A core this process may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// The kernel's CPU number.
    pub cpu: usize,
    /// The NUMA node (0 where the kernel does not say).
    pub node: usize,
}

/// The cores of the process's CPU set, ordered by node, then number.
pub fn allowed_cores() -> io::Result<Vec<Core>> {
    // SAFETY: an all-zero cpu_set_t is a valid value (the empty set).
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live cpu_set_t and the size is that of the type.
    let answer = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut cores: Vec<Core> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the index is below CPU_SETSIZE, the size of the set.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .map(|cpu| Core { cpu, node: node_of(cpu) })
        .collect();
    cores.sort_by_key(|core| (core.node, core.cpu));
    Ok(cores)
}

/// Pins the calling thread to one CPU.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("CPU number {cpu} is out of range")));
    }
    // SAFETY: an all-zero cpu_set_t is a valid value (the empty set).
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer is to a live cpu_set_t and the size is that of the type; pid 0
    // names the calling thread.
    let answer = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn node_of(cpu: usize) -> usize {
    let folder = format!("/sys/devices/system/cpu/cpu{cpu}");
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .next()
        .unwrap_or(0)
}

/// Where shard `index` of `count` runs: the cores are taken in order, so shards fill one
/// NUMA node before the next. More shards than cores share cores round robin.
pub fn core_of_shard(cores: &[Core], index: usize) -> Option<Core> {
    if cores.is_empty() { None } else { Some(cores[index % cores.len()]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_sees_only_its_core() {
        let cores = allowed_cores().expect("affinity");
        assert!(!cores.is_empty());
        let target = cores[cores.len() - 1].cpu;
        let seen = std::thread::spawn(move || {
            pin_current_thread(target).expect("pin");
            allowed_cores().expect("affinity")
        })
        .join()
        .expect("thread");
        assert_eq!(seen.iter().map(|core| core.cpu).collect::<Vec<_>>(), vec![target]);
    }

    #[test]
    fn an_impossible_cpu_is_an_error() {
        assert!(pin_current_thread(usize::MAX).is_err());
    }

    #[test]
    fn shards_fill_the_nodes_in_order() {
        let cores = [Core { cpu: 0, node: 0 }, Core { cpu: 2, node: 0 }, Core { cpu: 1, node: 1 }];
        let picked: Vec<_> = (0..4).map(|n| core_of_shard(&cores, n).expect("some").cpu).collect();
        assert_eq!(picked, [0, 2, 1, 0]);
        assert_eq!(core_of_shard(&[], 0), None);
    }
}
