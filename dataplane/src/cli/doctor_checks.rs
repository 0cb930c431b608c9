//! The single checks of `millrace doctor`. None changes anything but a probe file that it removes again.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_inference::gguf::Gguf;

use super::doctor::Finding;
use crate::certificate;
use crate::config::{Config, IoMode, human_bytes};
use crate::models::{self, Found, Kind};
use crate::net::tls::Tls;
use crate::plan::Plan;
use crate::shard::reactor::{self, Backend, Preference, RingFlags};
use crate::sys;

/// First kernel with all the ring flags that the reactors ask for.
const KERNEL_BEST: (u32, u32) = (6, 0);
/// First kernel whose io_uring the reactors can use.
const KERNEL_LEAST: (u32, u32) = (5, 11);
/// Less free space than this is a matter of hours.
const DISK_FREE_LEAST: u64 = 1 << 30;
/// A sync slower than this dominates the time to acknowledge a message.
const SYNC_SLOW: Duration = Duration::from_millis(10);
/// Descriptors besides connections: database files, rings, listeners.
const FILES_OTHER: u64 = 512;

pub(super) fn kernel() -> Finding {
    const WHY: &str = "from 6.0 on io_uring need not interrupt a reactor for what has completed";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match kernel_version(release) {
        Some(version) if version >= KERNEL_BEST => Finding::ok("kernel", format!("Linux {release}"), WHY),
        Some(version) if version >= KERNEL_LEAST => {
            Finding::warning("kernel", format!("Linux {release}"), WHY, "upgrade to a kernel from 6.0 on, then reboot")
        }
        _ => Finding::warning(
            "kernel",
            format!("Linux {release:?} is older than 5.11 or unknown"),
            WHY,
            "upgrade the kernel",
        ),
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn io_uring(mode: IoMode) -> Finding {
    const WHY: &str = "with io_uring a request needs fewer system calls; without it the reactors use epoll";
    let preference = match mode {
        IoMode::Auto => Preference::Auto,
        IoMode::Uring => Preference::Uring,
        IoMode::Epoll => Preference::Epoll,
    };
    match reactor::probe(preference) {
        Ok(probe) => {
            let refused: Vec<String> =
                probe.refused.iter().map(|(flags, reason)| format!("{flags:?}: {reason}")).collect();
            match probe.backend {
                Backend::Uring(RingFlags::Cooperative) => Finding::ok("io_uring", probe.backend.to_string(), WHY),
                Backend::Uring(_) => Finding::warning(
                    "io_uring",
                    format!("{} (refused: {})", probe.backend, refused.join("; ")),
                    WHY,
                    "upgrade to a kernel from 6.0 on",
                ),
                Backend::Epoll if mode == IoMode::Epoll => Finding::ok("io_uring", "turned off by io = epoll", WHY),
                Backend::Epoll => Finding::warning(
                    "io_uring",
                    format!("refused, epoll will be used ({})", refused.join("; ")),
                    WHY,
                    "sysctl -w kernel.io_uring_disabled=0; in a container allow io_uring_setup, io_uring_enter and \
                     io_uring_register in the seccomp profile",
                ),
            }
        }
        Err(error) => Finding::failure("io_uring", error.to_string(), WHY, "start with --io auto"),
    }
}

pub(super) fn memlock() -> Finding {
    const WHY: &str = "kernels before 5.12 count the rings of io_uring as locked memory";
    const LEAST: u64 = 8 << 20;
    match limit("Max locked memory") {
        Some(u64::MAX) => Finding::ok("memlock", "unlimited", WHY),
        Some(bytes) if bytes >= LEAST => Finding::ok("memlock", human_bytes(bytes), WHY),
        Some(bytes) => {
            Finding::warning("memlock", human_bytes(bytes), WHY, "ulimit -l 65536 (systemd: LimitMEMLOCK=64M)")
        }
        None => Finding::warning("memlock", "/proc/self/limits cannot be read", WHY, "mount /proc"),
    }
}

pub(super) fn open_files(config: &Config) -> Finding {
    const WHY: &str = "each connection is one open file; without a free one it is refused";
    let wanted = config.limits.connections_max as u64 + FILES_OTHER;
    // The server raises the soft limit by itself, so the hard one counts.
    let have = hard_limit("Max open files").unwrap_or(0);
    let what = format!("up to {have} files for {} connections and {FILES_OTHER} others", config.limits.connections_max);
    if have >= wanted {
        Finding::ok("nofile", what, WHY)
    } else {
        let fix =
            format!("ulimit -n {wanted} (systemd: LimitNOFILE={wanted}), or --limits-connections-max {}", have / 2);
        Finding::warning("nofile", what, WHY, fix)
    }
}

fn limit_fields(name: &str) -> Option<Vec<u64>> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?.to_owned();
    let number = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    line.split_whitespace().take(2).map(number).collect()
}

fn limit(name: &str) -> Option<u64> {
    limit_fields(name)?.first().copied()
}

fn hard_limit(name: &str) -> Option<u64> {
    limit_fields(name)?.get(1).copied()
}

pub(super) fn cpu_set(config: &Config) -> Finding {
    const WHY: &str = "more threads than CPUs make every step of the engine slower";
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.engine.threads;
    let what = format!("{cpus} CPU(s) usable, {threads} engine thread(s), {} reactor(s)", config.workers);
    if threads > cpus || config.workers > cpus {
        let fix = format!("--engine-threads {} --workers {}", threads.min(cpus), config.workers.min(cpus));
        Finding::warning("cpu set", what, WHY, fix)
    } else {
        Finding::ok("cpu set", what, WHY)
    }
}

pub(super) fn cpu_instructions() -> Finding {
    const WHY: &str = "the widest set that the CPU has decides how fast tokens come";
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("vaes", is_x86_feature_detected!("vaes")),
        ];
        let have: Vec<&str> = known.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
        Finding::ok("cpu instructions", have.join(", "), WHY)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Finding::warning("cpu instructions", "not an x86-64 CPU", WHY, "run on x86-64 for the vector kernels")
}

pub(super) fn models(config: &Config) -> Vec<Finding> {
    const WHY: &str = "without a readable model there is no answer";
    const WHY_ENCODER: &str = "without an encoder /v1/embeddings is refused and recall works on words alone";
    let mut findings = Vec::new();
    findings.push(match models::chat_model(config) {
        Ok(model) => model_finding("model", &model, WHY),
        Err(trouble) => Finding::failure("model", format!("{}: {}", trouble.what, trouble.why), WHY, trouble.next),
    });
    match models::encoder(config) {
        Ok(Some(model)) => findings.push(model_finding("embedding model", &model, WHY_ENCODER)),
        Ok(None) if !config.embeddings => {
            findings.push(Finding::ok("embedding model", "turned off by embedding_model = none", WHY_ENCODER));
        }
        Ok(None) => {
            let fix = format!("millrace model add FOLDER --models {}", config.models.display());
            findings.push(Finding::warning("embedding model", "none", WHY_ENCODER, fix));
        }
        Err(trouble) => {
            let what = format!("{}: {}", trouble.what, trouble.why);
            findings.push(Finding::failure("embedding model", what, WHY_ENCODER, trouble.next));
        }
    }
    findings
}

fn model_finding(check: &'static str, model: &Found, why: &'static str) -> Finding {
    let again = format!("millrace model rm {name}; millrace model add PATH/{name}", name = model.name);
    let weights = models::weights_file(&model.path, model.kind);
    let digest = match models::sha256_of(&weights, |_| ()) {
        Ok(digest) => digest,
        Err(error) => {
            let what = format!("{} cannot be read: {error}", weights.display());
            return Finding::failure(check, what, why, format!("chmod u+r {}", weights.display()));
        }
    };
    if model.kind == Kind::Chat
        && let Err(error) = Gguf::open(&model.path)
    {
        return Finding::failure(check, format!("{}: {error}", model.path.display()), why, again);
    }
    let what = format!("{}, {}, sha256 {}", model.path.display(), human_bytes(model.bytes), &digest[..16]);
    match models::recorded_checksum(model) {
        Some(recorded) if recorded != digest => Finding::failure(
            check,
            format!("{what}, but {} was recorded when it was added", &recorded[..16]),
            why,
            again,
        ),
        Some(_) => Finding::ok(check, format!("{what} as recorded"), why),
        None => Finding::ok(check, what, why),
    }
}

pub(super) fn memory_plan(config: &Config) -> Finding {
    const WHY: &str = "a plan that does not fit ends in the OOM killer instead of a clear refusal";
    let bytes = |model: Option<Found>| model.map_or(0, |model| model.bytes);
    let beside = bytes(models::draft_model(config).ok().flatten()) + bytes(models::small_model(config).ok().flatten());
    let chat = bytes(models::chat_model(config).ok()) + beside;
    let plan = Plan::new(config, chat, bytes(models::encoder(config).ok().flatten()));
    let what = format!("{} of {} planned", human_bytes(plan.total()), human_bytes(plan.limit));
    if plan.fits() {
        Finding::ok("memory", what, WHY)
    } else {
        Finding::failure("memory", format!("{what}\n{plan}"), WHY, "lower --engine-kv-mib, or raise --memory-limit")
    }
}

pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let mut ports = vec![("port (listen)", "listen", config.listen), ("port (metrics)", "metrics", config.metrics)];
    ports.extend(config.tls.as_ref().map(|tls| ("port (tls)", "tls-listen", tls.listen)));
    ports.into_iter().map(|(check, flag, address)| port(check, flag, address)).collect()
}

fn port(check: &'static str, flag: &str, address: SocketAddr) -> Finding {
    const WHY: &str = "the server refuses to start when another program has its port";
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(check, format!("{address} is free"), WHY),
        Err(_) if answers_health(address, check.contains("tls")) => {
            Finding::ok(check, format!("{address} is served by a running server"), WHY)
        }
        Err(error) => {
            let fix = format!(
                "ss -ltnp 'sport = :{port}' shows who has it; or --{flag} {ip}:0",
                port = address.port(),
                ip = address.ip()
            );
            Finding::failure(check, format!("{address}: {error}"), WHY, fix)
        }
    }
}

/// A TLS port of ours says in plain HTTP that it wants TLS.
fn answers_health(address: SocketAddr, tls: bool) -> bool {
    let wanted: &[u8; 12] = if tls { b"HTTP/1.1 400" } else { b"HTTP/1.1 200" };
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == wanted)
    };
    ask().unwrap_or(false)
}

pub(super) fn exposure(config: &Config) -> Finding {
    const WHY: &str = "plain HTTP shows API keys to everybody on the way";
    if config.listen.ip().is_loopback() {
        Finding::ok("exposure", format!("{} is reachable from this machine only", config.listen), WHY)
    } else {
        let fix = "--tls-listen IP:PORT for the network and --listen 127.0.0.1:8080, or a TLS proxy in front";
        Finding::warning("exposure", format!("{} is reachable from the network, without TLS", config.listen), WHY, fix)
    }
}

/// Days before its end at which a certificate should have been renewed.
const CERTIFICATE_DAYS_LEAST: u64 = 14;

pub(super) fn certificate(config: &Config) -> Option<Finding> {
    const WHY: &str = "clients refuse a certificate that has expired or that does not fit its key";
    const CHECK: &str = "certificate";
    let options = config.tls.as_ref()?;
    if options.self_signed && !options.files.certificate.exists() {
        return Some(Finding::ok(CHECK, "a self-signed one will be made at the first start", WHY));
    }
    Some(match Tls::open(options.files.clone()).map(|_| certificate::inspect(&options.files.certificate)) {
        Err(error) => Finding::failure(CHECK, format!("{}: {}", error.path.display(), error.why), WHY, error.next),
        Ok(Err(why)) => Finding::warning(CHECK, why, WHY, "openssl x509 -noout -text -in the file shows what is odd"),
        Ok(Ok(facts)) => {
            let days = facts.days_left();
            let what = format!("{} ends in {days} day(s)", facts.subject);
            let renew = "renew it, then `kill -HUP` the server";
            match days {
                0 => Finding::failure(CHECK, format!("{} has expired", facts.subject), WHY, renew),
                1..CERTIFICATE_DAYS_LEAST if !options.self_signed => Finding::warning(CHECK, what, WHY, renew),
                _ => Finding::ok(CHECK, what, WHY),
            }
        }
    })
}

pub(super) fn disk(config: &Config) -> Vec<Finding> {
    const WHY_SPACE: &str = "a full disk stops every acknowledgement of a message";
    const WHY_SYNC: &str = "every accepted message waits for one sync of the disk";
    let data = &config.data;
    let Some(folder) = existing(data) else {
        let fix = format!("mkdir -p {}", data.display());
        return vec![Finding::failure("disk", format!("{} has no existing parent", data.display()), WHY_SPACE, fix)];
    };
    let mut findings = Vec::new();
    match sys::disk_space(&folder) {
        Ok((free, total)) => {
            let what = format!("{} free of {} for {}", human_bytes(free), human_bytes(total), data.display());
            findings.push(if free >= DISK_FREE_LEAST {
                Finding::ok("disk space", what, WHY_SPACE)
            } else {
                Finding::warning("disk space", what, WHY_SPACE, "free space, or name another folder with --data")
            });
        }
        Err(error) => {
            let what = format!("{}: {error}", folder.display());
            findings.push(Finding::failure("disk space", what, WHY_SPACE, "name another folder with --data"));
        }
    }
    findings.push(match sync_cost(&folder) {
        Ok(cost) if cost <= SYNC_SLOW => {
            Finding::ok("disk sync", format!("{cost:.1?} for 4 KiB (median of 21)"), WHY_SYNC)
        }
        Ok(cost) => {
            let fix = "name a folder on an SSD with --data";
            Finding::warning("disk sync", format!("{cost:.1?} for 4 KiB (median of 21)"), WHY_SYNC, fix)
        }
        Err(error) => {
            let fix = format!("chown $(id -u) {0}; chmod u+rwx {0}", folder.display());
            Finding::failure("disk sync", format!("{} cannot be written: {error}", folder.display()), WHY_SYNC, fix)
        }
    });
    findings
}

/// The folder itself or its nearest parent that exists.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|ancestor| ancestor.is_dir()).map(Path::to_owned)
}

fn sync_cost(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(format!(".millrace-doctor-{}", std::process::id()));
    let outcome = (|| {
        let mut file = File::create_new(&path)?;
        let mut costs = Vec::with_capacity(21);
        for _ in 0..21 {
            let began = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            costs.push(began.elapsed());
        }
        costs.sort();
        Ok(costs[costs.len() / 2])
    })();
    let _ = fs::remove_file(&path);
    outcome
}

#[cfg(test)]
mod tests {
    use super::super::doctor::Status;
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("odd"), None);
    }

    #[test]
    fn a_taken_port_is_a_failure_with_the_command_that_finds_its_owner() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let finding = port("port (listen)", "listen", taken.local_addr().unwrap());
        assert_eq!(finding.status, Status::Failure, "{finding:?}");
        assert!(finding.fix.unwrap().contains("ss -ltnp"));
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(port("port (listen)", "listen", free).status, Status::Ok);
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("a/b/c");
        assert_eq!(existing(&absent).unwrap(), folder.path());
        assert!(sync_cost(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe file is removed");
    }

    #[test]
    fn limits_of_this_process_are_read() {
        assert!(limit("Max open files").unwrap() > 2 && hard_limit("Max open files").unwrap() > 2);
    }
}
