use super::*;
use millrace_storage::StoreOptions;
use std::path::Path;

fn backups(folder: &Path, every: Option<Duration>) -> Backups {
    let store = Store::open(&StoreOptions::new(folder.join("data"))).expect("a store");
    let target = Some(Place::Folder(folder.join("target").to_string_lossy().into_owned()));
    let options = BackupOptions { target, every, keep: 2, bytes_per_s: 0, archive_idle: None, archive_window: 200 };
    Backups::start(store, Control::start().expect("a control thread"), options).expect("threads")
}

fn wait_for(backups: &Backups, mut done: impl FnMut(&Status) -> bool) -> Status {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = backups.status();
        if done(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_schedule_makes_backups_keeps_the_newest_and_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = backups(folder.path(), Some(Duration::from_millis(20)));
    let status = wait_for(&service, |status| status.made >= 4);
    let last = status.last.expect("a note");
    assert!(last.place.starts_with("file:///") && last.bytes > 0, "{last:?}");
    service.shutdown();
    let kept = std::fs::read_dir(folder.path().join("target/manifests")).expect("manifests").count();
    assert_eq!(kept, 1, "one line");
    drop(service);

    let service = backups(folder.path(), Some(Duration::from_secs(3_600)));
    let status = service.status();
    let noted = status.last.expect("the note outlives the process");
    let next = status.next_ms.expect("a schedule");
    assert!(next.abs_diff(noted.at_ms + 3_600_000) < 60_000, "{next} after {}", noted.at_ms);
    service.shutdown();
}

#[test]
fn a_failed_run_is_told_and_a_stop_ends_the_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = backups(folder.path(), None);
    // A file where the target's folder would have to be.
    std::fs::write(folder.path().join("taken"), b"").expect("written");
    let taken = Place::Folder(folder.path().join("taken").to_string_lossy().into_owned());
    let run = service.submit(Some(taken), None).expect("room");
    let status = wait_for(&service, |status| status.outcomes.iter().any(|outcome| outcome.run == run));
    let why = status.outcomes[0].result.as_ref().expect_err("it cannot work");
    assert!(why.contains("taken"), "{why}");
    assert_eq!((status.failed, status.made, status.next_ms), (1, 0, None));
    let run = service.submit(None, Some(1)).expect("room");
    let status = wait_for(&service, |status| status.outcomes.iter().any(|outcome| outcome.run == run));
    assert_eq!(status.made, 1);
    service.shutdown();
    assert_eq!(service.submit(None, None), Err(Refused::Closed));
}

#[test]
fn keys_of_the_forgotten_leave_the_copies() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = backups(folder.path(), None);
    let mut batch = Batch::new();
    assert_eq!(service.forgetting(&mut batch).expect("readable").1, 0, "no place holds a copy yet");
    let mut batch = Batch::new();
    let run = service.submit(None, None).expect("room");
    wait_for(&service, |status| status.outcomes.iter().any(|outcome| outcome.run == run));
    let (note, places) = service.forgetting(&mut batch).expect("readable");
    assert_eq!(places, 1);
    service.inner.store.commit(batch).expect("durable");
    assert_eq!(service.inner.store.backup_keys_noted().expect("readable"), std::slice::from_ref(&note));
    service.forgotten(note);
    wait_for(&service, |status| status.keys_waiting == 0);
    assert_eq!(service.inner.store.backup_keys_noted().expect("readable"), []);
    service.shutdown();
}
