//! What the kernel says about this process (`/proc/self`), for the `process_*` metrics.

use std::fs;

/// Figures of `/proc/self` at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessSnapshot {
    /// User plus system time in seconds.
    pub cpu_seconds: f64,
    /// Resident bytes, mapped files included.
    pub resident_bytes: u64,
    /// Resident bytes that belong to no file: heap, stacks, packed weights.
    pub anonymous_bytes: u64,
    /// Highest resident bytes so far.
    pub peak_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Soft limit of descriptors.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// Start of the process in Unix seconds.
    pub start_seconds: f64,
}

impl ProcessSnapshot {
    /// Reads the figures; what cannot be read stays 0.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let (cpu_seconds, start_ticks) = times(&stat).unwrap_or_default();
        Self {
            cpu_seconds,
            resident_bytes: kib("VmRSS:").unwrap_or(0) * 1024,
            anonymous_bytes: kib("RssAnon:").unwrap_or(0) * 1024,
            peak_bytes: kib("VmHWM:").unwrap_or(0) * 1024,
            virtual_bytes: kib("VmSize:").unwrap_or(0) * 1024,
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            max_fds: max_fds().unwrap_or(0),
            threads: kib("Threads:").unwrap_or(0),
            start_seconds: boot_seconds().unwrap_or(0.0) + start_ticks as f64 / TICKS_PER_SECOND,
        }
    }
}

/// `USER_HZ` of every Linux architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds (fields 14 and 15) and start ticks (field 22) of `/proc/self/stat`.
fn times(stat: &str) -> Option<(f64, u64)> {
    // The command name may hold spaces and brackets; fields count from behind its last bracket.
    let rest = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((ticks as f64 / TICKS_PER_SECOND, fields.get(19)?.parse().ok()?))
}

fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_process_has_plausible_figures() {
        let process = ProcessSnapshot::read();
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.threads >= 1 && process.open_fds >= 3 && process.max_fds >= 3, "{process:?}");
        assert!(process.start_seconds > 1.6e9, "{process:?}");
    }

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 4711 9";
        assert_eq!(times(stat), Some((3.0, 4711)));
        assert_eq!(times("nonsense"), None);
        assert_eq!(times("1 (x) S 1"), None);
    }
}
