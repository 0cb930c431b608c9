//! A full or failing disk: nothing is acknowledged that is not durable, reading goes on, and
//! writing works again by itself.

use crate::common::{T1, over};
use millrace_storage::{Batch, CommitError, Fault, MemoryBackend, OpenError, Store, StoreOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn named(name: &str, bytes: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put_meta(name, &vec![7; bytes]);
    batch
}

/// Commits until it works; the store tries twice a second.
fn commit_until_it_works(store: &Store, name: &str) -> Duration {
    let started = Instant::now();
    loop {
        match store.commit(named(name, 10)) {
            Ok(_) => return started.elapsed(),
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "writing did not come back");
        std::thread::yield_now();
    }
}

#[test]
fn a_failing_engine_refuses_and_recovers() {
    for (fault, is_space) in [(Fault::NoSpace, true), (Fault::Io, false)] {
        let folder = tempfile::tempdir().unwrap();
        let kv = Arc::new(MemoryBackend::new());
        let store = over(folder.path(), &kv);
        store.commit(named("before", 10)).unwrap();
        kv.inject(fault);
        let error = store.commit(named("lost", 10)).unwrap_err();
        assert_eq!(matches!(error, CommitError::NoSpace { .. }), is_space, "{error}");
        assert!(error.retryable());
        assert!(!store.stats().writable);
        assert!(store.meta("before").unwrap().is_some(), "reading goes on");
        assert_eq!(store.meta("lost").unwrap(), None);
        assert!(store.commit(named("lost too", 10)).is_err());
        let mut batch = Batch::new();
        batch.put_dedup(T1, "a new tenant", "needs a key first", 1);
        assert!(store.commit(batch).is_err());
        kv.inject(Fault::None);
        commit_until_it_works(&store, "after");
        assert!(store.stats().writable);
        assert_eq!(store.stats().recoveries, 1);
        assert!(store.meta("after").unwrap().is_some());
    }
}

#[test]
fn it_recovers_without_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    kv.inject(Fault::NoSpace);
    assert!(store.commit(named("lost", 10)).is_err());
    kv.inject(Fault::None);
    let started = Instant::now();
    while !store.stats().writable {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

/// A small volume of its own, or `None` where this user may not mount one.
struct Volume(tempfile::TempDir);

impl Volume {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIPPED: mounting a tmpfs needs root; the failing engine above covers the logic");
            return None;
        }
        Some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_volume_refuses_writes_keeps_reading_and_recovers_within_seconds() {
    let Some(volume) = Volume::mount("size=48m") else { return };
    let store = Store::open(&StoreOptions::new(volume.path().join("data"))).unwrap();
    store.commit(named("before", 10)).unwrap();
    let ballast = volume.path().join("ballast");
    for round in 0..3 {
        // Something else fills the volume to the last byte.
        let _ = std::fs::write(&ballast, vec![0u8; 64 << 20]);
        let mut acknowledged = Vec::new();
        let error = (0..2_000)
            .find_map(|n| {
                let name = format!("{round}/{n}");
                match store.commit(named(&name, 64 << 10)) {
                    Ok(_) => {
                        acknowledged.push(name);
                        None
                    }
                    Err(error) => Some(error),
                }
            })
            .expect("a full volume is noticed");
        assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
        assert!(error.to_string().contains("free space"), "{error}");
        assert!(store.meta("before").unwrap().is_some(), "reading goes on");
        for name in &acknowledged {
            assert!(store.meta(name).unwrap().is_some(), "{name} was acknowledged");
        }
        std::fs::remove_file(&ballast).unwrap();
        let took = commit_until_it_works(&store, "after");
        println!("round {round}: {} acknowledged, writing again after {took:?}", acknowledged.len());
        assert!(took < Duration::from_secs(30), "recovery took {took:?}");
        for name in acknowledged {
            assert!(store.meta(&name).unwrap().is_some(), "{name} was acknowledged");
        }
    }
}

#[test]
fn a_start_on_a_full_volume_says_so() {
    let Some(volume) = Volume::mount("size=1m") else { return };
    let _ = std::fs::write(volume.path().join("ballast"), vec![0u8; 2 << 20]);
    let error = Store::open(&StoreOptions::new(volume.path().join("data"))).unwrap_err();
    assert!(matches!(error, OpenError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("Free some space"), "{error}");
}
