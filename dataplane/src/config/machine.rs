//! What the machine offers: memory and CPUs, as this process may use them.

use std::fs;
use std::path::PathBuf;

/// The parts of the machine that defaults are derived from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Memory in bytes: of the machine or of our control group, whichever is smaller.
    pub memory_bytes: u64,
    /// CPUs that this process may run on.
    pub cpus: usize,
}

impl Machine {
    /// Looks at the running system.
    pub fn probe() -> Self {
        let total = memory_total().unwrap_or(1 << 30);
        let memory_bytes = cgroup_limit().map_or(total, |limit| limit.min(total));
        Self { memory_bytes, cpus: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

fn memory_total() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The limit of our control group (version 2, then 1); `max` and absurdly large values mean none.
fn cgroup_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim().to_owned();
    [
        format!("/sys/fs/cgroup{path}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
    .filter(|limit| *limit < 1 << 60)
}

/// Where data goes when nothing says otherwise.
pub fn default_data_folder(environment: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| environment(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    match (set("XDG_DATA_HOME").filter(|path| path.is_absolute()), set("HOME")) {
        (Some(xdg), _) => xdg.join("millrace"),
        (None, Some(home)) => home.join(".local/share/millrace"),
        (None, None) => PathBuf::from("/var/lib/millrace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_a_cpu() {
        let machine = Machine::probe();
        assert!(machine.cpus >= 1 && machine.memory_bytes >= 1 << 24, "{machine:?}");
    }

    #[test]
    fn the_data_folder_follows_xdg_then_home() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let xdg = with(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]);
        assert_eq!(default_data_folder(&xdg), PathBuf::from("/x/millrace"));
        let home = with(&[("XDG_DATA_HOME", "relative"), ("HOME", "/h")]);
        assert_eq!(default_data_folder(&home), PathBuf::from("/h/.local/share/millrace"));
        assert_eq!(default_data_folder(&with(&[])), PathBuf::from("/var/lib/millrace"));
    }
}
