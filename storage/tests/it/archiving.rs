//! Archived messages: they leave the store, are read as before, and nothing is lost or twice whatever comes between.

use crate::common::{Random, T1, conversation, files, holding, message, rocks, seed, user};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::{Message, SessionHead};
use millrace_storage::{
    ArchiveDone, ArchiveError, ArchiveFilter, ArchiveRule, BackupReader, Batch, Budget, Folder, KeySource, Store,
    StoreOptions, Target, TargetError,
};
use std::fs;
use std::path::Path;
use std::sync::mpsc;

const SECRET: &str = "the vault opens with quicksilver-eleven";
/// Messages of tests are at 1,000 + their number.
const EVERYTHING: ArchiveRule = ArchiveRule { before_ms: 1_000_000, window: 10 };

fn free() -> Budget {
    Budget::new(0)
}

/// A session whose last use was at `updated_ms`, with messages up to `messages`.
fn write(store: &Store, name: &str, messages: std::ops::Range<u64>, updated_ms: u64) {
    let mut head: SessionHead = crate::common::head(T1, user(T1, name), name, updated_ms);
    head.next_seq = messages.end;
    let mut batch = Batch::new();
    batch.put_session(&head);
    for seq in messages {
        batch.append_message(T1, conversation(T1, name), &message(seq, &format!("{name} {seq}: {SECRET}")));
    }
    store.commit(batch).unwrap();
}

fn archive(store: &Store, folder: &Path, rule: ArchiveRule) -> ArchiveDone {
    store.archive(&Folder::new(folder.join("target")), rule, &free()).expect("it is moved")
}

fn open(url: &str) -> Result<Box<dyn Target>, TargetError> {
    let path = url.strip_prefix("file://").ok_or(TargetError::NotFound)?;
    Ok(Box::new(Folder::new(path)))
}

fn id(name: &str) -> (TenantId, ConversationId) {
    (T1, conversation(T1, name))
}

fn live(store: &Store, name: &str) -> Vec<u64> {
    let messages = store.messages(T1, conversation(T1, name), None, usize::MAX).unwrap();
    messages.iter().map(|message| message.seq).collect()
}

fn all(store: &Store, name: &str) -> Vec<u64> {
    let messages = store.messages_with_archived(&open, id(name), None, usize::MAX).unwrap();
    for message in &messages {
        assert_eq!(message.text, format!("{name} {}: {SECRET}", message.seq));
    }
    messages.iter().map(|message: &Message| message.seq).collect()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn idle_conversations_leave_whole_and_are_read_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    for (name, updated_ms) in [("idle", 5_000), ("other", 6_000), ("used", 2_000_000)] {
        write(&store, name, 0..40, updated_ms);
    }
    let rule = ArchiveRule { before_ms: 1_000_000, window: 100 };
    let done = archive(&store, folder.path(), rule);
    assert_eq!((done.messages, done.conversations), (80, 2), "{done:?}");
    assert_eq!(live(&store, "idle"), numbers(0..0));
    assert_eq!(live(&store, "used"), numbers(0..40));
    for name in ["idle", "other", "used"] {
        assert_eq!(all(&store, name), numbers(0..40), "{name}");
    }
    for (before, limit, expected) in
        [(Some(10), 4, 6..10), (None, 3, 37..40), (Some(2), 10, 0..2), (Some(0), 5, 0..0), (Some(99), 2, 38..40)]
    {
        let read = store.messages_with_archived(&open, id("idle"), before, limit).unwrap();
        assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), numbers(expected), "{before:?}");
    }
    // The session goes on: what is new lies in the store, what is old where it is.
    write(&store, "idle", 40..45, 3_000_000);
    assert_eq!(all(&store, "idle"), numbers(0..45));
    let read = store.messages(T1, conversation(T1, "idle"), None, 5).unwrap();
    assert!(!store.lacks_archived(id("idle"), &read, None, 5).unwrap(), "the newest ones are in the store");
    assert!(store.lacks_archived(id("idle"), &read, None, 6).unwrap());
    assert!(store.lacks_archived(id("idle"), &[], Some(40), 6).unwrap());
    assert!(!store.lacks_archived(id("used"), &[], None, 6).unwrap());
    assert_eq!(archive(&store, folder.path(), rule), ArchiveDone::default(), "nothing is left to move");
    drop(store);
    let store = rocks(&folder.path().join("data"));
    assert_eq!(all(&store, "idle"), numbers(0..45));
    assert_eq!(holding(folder.path(), SECRET.as_bytes()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn closed_days_of_a_conversation_in_use_leave_and_its_window_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "used", 0..100, 2_000_000);
    // Message n was said at 1,000 + n.
    let done = archive(&store, folder.path(), ArchiveRule { before_ms: 1_030, window: 10 });
    assert_eq!(done.messages, 30);
    assert_eq!(live(&store, "used"), numbers(30..100));
    let done = archive(&store, folder.path(), ArchiveRule { before_ms: 1_999, window: 10 });
    assert_eq!(done.messages, 60);
    assert_eq!(live(&store, "used"), numbers(90..100), "the window stays, however old it is");
    assert_eq!(all(&store, "used"), numbers(0..100));
    let found = store.archived(&ArchiveFilter { tenant: None, from_ms: 0, to_ms: u64::MAX }, 9).unwrap();
    assert_eq!((found.len(), found[0].messages, found[0].first_ms, found[0].last_ms), (1, 90, 1_000, 1_089));
}

#[test]
fn archives_are_found_by_time_and_tenant() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "early", 0..10, 5_000);
    write(&store, "late", 500..510, 6_000);
    archive(&store, folder.path(), EVERYTHING);
    let find = |tenant, from_ms, to_ms| {
        let found = store.archived(&ArchiveFilter { tenant, from_ms, to_ms }, 9).unwrap();
        found.into_iter().map(|about| about.conversation).collect::<Vec<_>>()
    };
    let (early, late) = (id("early").1, id("late").1);
    assert_eq!(find(None, 0, u64::MAX), [late, early], "the newest first");
    assert_eq!(find(Some(T1), 1_005, 1_100), [early]);
    assert_eq!(find(None, 1_010, 1_500), []);
    assert_eq!(find(None, 1_505, 1_506), [late]);
    assert_eq!(find(Some(TenantId(9)), 0, u64::MAX), []);
}

#[test]
fn what_is_brought_back_stays_until_it_is_idle_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "idle", 0..40, 5_000);
    archive(&store, folder.path(), EVERYTHING);
    assert_eq!(store.unarchive(&open, T1, id("idle").1).unwrap(), 40);
    assert_eq!(live(&store, "idle"), numbers(0..40));
    assert_eq!(store.unarchive(&open, T1, id("idle").1).unwrap(), 0);
    let done = archive(&store, folder.path(), EVERYTHING);
    assert_eq!((done.messages, done.objects_removed), (0, 1), "it is left alone, and its object is waste");
    let later = ArchiveRule { before_ms: u64::MAX, ..EVERYTHING };
    assert_eq!(archive(&store, folder.path(), later).messages, 40);
    assert_eq!(all(&store, "idle"), numbers(0..40));
}

#[test]
fn a_session_that_is_used_meanwhile_keeps_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "idle", 0..40, 5_000);
    let other = store.clone();
    let target = Interrupted {
        inner: Folder::new(folder.path().join("target")),
        act: std::sync::Mutex::new(Some(Box::new(move || write(&other, "idle", 40..41, 2_000_000)))),
    };
    let done = store.archive(&target, EVERYTHING, &free()).unwrap();
    assert_eq!((done.messages, done.objects_removed), (0, 1), "{done:?}");
    assert_eq!(live(&store, "idle"), numbers(0..41));
}

/// Does something when an object has been written.
struct Interrupted {
    inner: Folder,
    act: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Target for Interrupted {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        self.inner.put(name, bytes, budget)?;
        if let Some(act) = self.act.lock().unwrap().take() {
            act();
        }
        Ok(())
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        self.inner.put_new(name, bytes, budget)
    }

    fn get(&self, name: &str, bytes_max: u64, budget: &Budget) -> Result<Vec<u8>, TargetError> {
        self.inner.get(name, bytes_max, budget)
    }

    fn get_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>, TargetError> {
        self.inner.get_range(name, range)
    }

    fn list(&self, folder: &str) -> Result<Vec<millrace_storage::Object>, TargetError> {
        self.inner.list(folder)
    }

    fn remove(&self, name: &str) -> Result<(), TargetError> {
        self.inner.remove(name)
    }
}

#[test]
fn damaged_or_missing_archives_are_told_and_nothing_else_is_held_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "idle", 0..40, 5_000);
    archive(&store, folder.path(), EVERYTHING);
    let object = files(&folder.path().join("target/archive")).pop().unwrap();
    let whole = fs::read(&object).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, word) in [(Some(flipped), "damaged"), (Some(whole[..99].to_vec()), "cannot"), (None, "missing")] {
        match bytes {
            Some(bytes) => fs::write(&object, bytes).unwrap(),
            None => fs::remove_file(&object).unwrap(),
        }
        let error = store.messages_with_archived(&open, id("idle"), None, 9).unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert!(store.unarchive(&open, T1, id("idle").1).is_err());
        assert!(store.session(T1, id("idle").1).unwrap().is_some());
    }
    fs::write(&object, &whole).unwrap();
    assert_eq!(all(&store, "idle"), numbers(0..40));
}

#[test]
fn whoever_is_forgotten_is_unreadable_in_the_archive_and_then_gone_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "idle", 0..40, 5_000);
    archive(&store, folder.path(), EVERYTHING);
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, "idle"), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
    assert_eq!(all(&store, "idle"), numbers(0..0));
    assert_eq!(store.archived(&ArchiveFilter { tenant: None, from_ms: 0, to_ms: u64::MAX }, 9).unwrap(), []);
    assert_eq!(archive(&store, folder.path(), EVERYTHING).objects_removed, 1);
    assert_eq!(files(&folder.path().join("target/archive")).len(), 0);
}

/// A backup names the archived objects that its rows need: they outlive their use by the store itself.
#[test]
fn a_backup_keeps_the_archive_that_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(folder.path().join("data"));
    options.key_file = folder.path().join("master.key");
    let store = Store::open(&options).unwrap();
    let target = Folder::new(folder.path().join("target"));
    write(&store, "idle", 0..40, 5_000);
    archive(&store, folder.path(), EVERYTHING);
    let done = store.backup(&target, 1, &free()).unwrap();
    let elsewhere = Folder::new(folder.path().join("elsewhere"));
    store.backup(&elsewhere, 1, &free()).unwrap();
    BackupReader::new(&elsewhere, &KeySource::File, &folder.path().join("master.key"))
        .and_then(|reader| reader.verify(None, &free()))
        .expect("what is archived in another place is not missed in this one");
    store.unarchive(&open, T1, id("idle").1).unwrap();
    assert_eq!(archive(&store, folder.path(), EVERYTHING).objects_removed, 0, "the backup needs it");
    let reader = BackupReader::new(&target, &KeySource::File, &options.key_file).unwrap();
    reader.verify(None, &free()).unwrap();
    reader.restore(Some(&done.id), &folder.path().join("restored"), &free()).unwrap();
    options.path = folder.path().join("restored");
    let restored = Store::open(&options).unwrap();
    assert_eq!(live(&restored, "idle"), numbers(0..0));
    assert_eq!(all(&restored, "idle"), numbers(0..40));
    drop(restored);
    store.backup(&target, 1, &free()).unwrap();
    assert_eq!(archive(&store, folder.path(), EVERYTHING).objects_removed, 1, "the older backup is gone");
    let object = files(&folder.path().join("target/objects")).len();
    assert!(object > 0, "backups' own objects are another matter");
}

#[test]
fn a_large_message_stays_and_its_neighbours_leave() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    write(&store, "idle", 0..3, 5_000);
    let mut batch = Batch::new();
    let mut large = message(3, "");
    large.text = "y".repeat(9 << 20);
    batch.append_message(T1, id("idle").1, &large);
    store.commit(batch).unwrap();
    write(&store, "idle", 4..7, 5_000);
    assert_eq!(archive(&store, folder.path(), EVERYTHING).messages, 6);
    assert_eq!(live(&store, "idle"), [3]);
    let read = store.messages_with_archived(&open, id("idle"), None, 99).unwrap();
    assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), numbers(0..7));
    let read = store.messages(T1, id("idle").1, None, 1).unwrap();
    assert!(store.lacks_archived(id("idle"), &read, None, 1).unwrap(), "newer ones are archived");
    let newest = store.messages_with_archived(&open, id("idle"), None, 2).unwrap();
    assert_eq!(newest.iter().map(|message| message.seq).collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn conversations_larger_than_an_object_are_moved_in_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("data"));
    let mut head = crate::common::head(T1, user(T1, "long"), "long", 5_000);
    head.next_seq = 40;
    for seq in 0..40 {
        let mut batch = Batch::new();
        batch.put_session(&head);
        let mut long = message(seq, "");
        long.text = "z".repeat(500 << 10);
        batch.append_message(T1, id("long").1, &long);
        store.commit(batch).unwrap();
    }
    let done = archive(&store, folder.path(), EVERYTHING);
    assert_eq!(done.messages, 40);
    assert!(files(&folder.path().join("target/archive")).len() >= 3);
    let read = store.messages_with_archived(&open, id("long"), Some(35), 30).unwrap();
    assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), numbers(5..35));
}

/// The child of the kill test: fills sessions, archives them and brings some back until it is killed.
#[test]
#[ignore = "run by the kill test in a process of its own"]
fn child_that_is_killed_while_it_archives() {
    use std::io::Write;
    let Ok(folder) = std::env::var("MILLRACE_KILL_FOLDER") else { return };
    let folder = Path::new(&folder);
    let store = rocks(&folder.join("data"));
    let target = Folder::new(folder.join("target"));
    let start = store.meta("next").unwrap().map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    for n in start.. {
        write(&store, &format!("session {n}"), 0..30, 5_000);
        let mut batch = Batch::new();
        batch.put_meta("next", &(n + 1).to_be_bytes());
        store.commit(batch).unwrap();
        println!("wrote {n}");
        std::io::stdout().flush().unwrap();
        match store.archive(&target, EVERYTHING, &free()) {
            Ok(_) | Err(ArchiveError::Running) => {}
            Err(error) => panic!("{error}"),
        }
        if n % 3 == 0 {
            store.unarchive(&open, T1, conversation(T1, &format!("session {n}"))).unwrap();
        }
    }
}

#[test]
fn a_kill_while_messages_move_loses_none_and_doubles_none() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let seed = seed();
    let mut random = Random::new(seed);
    let mut wrote = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archiving::child_that_is_killed_while_it_archives", "--ignored", "--nocapture"])
            .env("MILLRACE_KILL_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = usize::try_from(2 + random.below(30)).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.filter(|line| line.starts_with("wrote ")).take(wanted) {
            wrote = line["wrote ".len()..].parse::<u64>().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = rocks(&folder.path().join("data"));
        for n in 0..=wrote {
            assert_eq!(all(&store, &format!("session {n}")), numbers(0..30), "seed {seed}, round {round}, session {n}");
        }
    }
}
