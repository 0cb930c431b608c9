//! Backups: what was acknowledged before one began is in it, whatever happens to the target is told, and nobody who is
//! forgotten comes back.

use crate::common::{T1, conversation, files, holding, message, remembered, rocks, say, user};
use millrace_storage::{
    ArchiveError, BackendKind, BackupReader, Batch, Budget, Folder, KeySource, Object, ReadError, Store, StoreOptions,
    Suite, Target, TargetError,
};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;

const SECRET: &str = "the vault opens with quicksilver-eleven";

/// A store, its target and places to restore into.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Store {
        self.open("data")
    }

    /// A store whose key of keys lies beside all data folders.
    fn open(&self, name: &str) -> Store {
        let mut options = StoreOptions::new(self.path(name));
        options.key_file = self.path("master.key");
        options.memory_bytes = 32 << 20;
        Store::open(&options).expect("a store opens")
    }

    fn target(&self) -> Folder {
        Folder::new(self.path("target"))
    }

    fn restore(&self, at: Option<&str>, into: &str) -> Result<(), ArchiveError> {
        let target = self.target();
        let reader = BackupReader::new(&target, &KeySource::File, &self.path("master.key"))?;
        reader.restore(at, &self.path(into), &free()).map(drop)
    }

    fn verify(&self, at: Option<&str>) -> Result<usize, ArchiveError> {
        let target = self.target();
        let reader = BackupReader::new(&target, &KeySource::File, &self.path("master.key"))?;
        reader.verify(at, &free()).map(|checked| checked.objects)
    }

    /// The one file below a folder of the target.
    fn only(&self, folder: &str) -> PathBuf {
        let found = files(&self.path("target").join(folder));
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    }
}

fn free() -> Budget {
    Budget::new(0)
}

fn backup(store: &Store, target: &dyn Target) -> millrace_storage::BackupDone {
    store.backup(target, 0, &free()).expect("a backup")
}

fn fill(store: &Store, name: &str, rows: u64) {
    for n in 0..rows {
        let mut batch = Batch::new();
        batch.append_message(T1, conversation(T1, name), &message(n, &format!("{name} {n} {}", "x".repeat(900))));
        store.commit(batch).unwrap();
    }
    store.flush().unwrap();
}

fn forget(store: &Store, name: &str) {
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, name), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
}

fn numbered(n: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put_meta("left", &n.to_be_bytes());
    batch.put_meta("right", &n.to_be_bytes());
    batch.append_message(T1, conversation(T1, "writer"), &message(n, "text"));
    batch
}

/// What the restored store holds of the writer: its last number, with every earlier one there.
fn last_of_writer(store: &Store) -> u64 {
    let read = |name: &str| u64::from_be_bytes(store.meta(name).unwrap().unwrap().try_into().unwrap());
    assert_eq!(read("left"), read("right"), "a batch is whole or absent");
    let last = read("left");
    let messages = store.messages(T1, conversation(T1, "writer"), None, usize::MAX).unwrap();
    assert_eq!(messages.len() as u64, last + 1);
    assert!(messages.iter().zip(0..).all(|(message, n)| message.seq == n));
    last
}

#[test]
fn what_was_acknowledged_before_is_in_a_backup_that_was_made_under_writes() {
    let place = Place::new();
    let store = place.store();
    say(&store, "alice", SECRET);
    store.commit(numbered(0)).unwrap();
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut before = Vec::new();
    let mut ids = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                if stop.load(SeqCst) {
                    return;
                }
                store.commit(numbered(n)).unwrap();
                acknowledged.store(n, SeqCst);
            }
        });
        for round in 0..4u64 {
            while acknowledged.load(SeqCst) < (round + 1) * 50 {
                std::thread::yield_now();
            }
            before.push(acknowledged.load(SeqCst));
            ids.push(backup(&store, &place.target()).id);
        }
        stop.store(true, SeqCst);
    });
    store.shutdown();
    for (id, before) in ids.iter().zip(before) {
        place.verify(Some(id)).unwrap();
        place.restore(Some(id), id).unwrap();
        let restored = place.open(id);
        let last = last_of_writer(&restored);
        assert!(last >= before, "{id} ends at {last}, {before} was acknowledged");
        assert_eq!(remembered(&restored, "alice", SECRET), [SECRET]);
        // It is a store like any other.
        restored.commit(numbered(last + 1)).unwrap();
    }
    assert!(!place.path("data").join("backup.tmp").exists(), "nothing is left in the data folder");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(place.path(&ids[0])).unwrap());
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(holding(&place.path("target"), SECRET.as_bytes()), Vec::<PathBuf>::new());
    let key = fs::read_to_string(place.path("master.key")).unwrap();
    let key = key.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(
        holding(&place.path("target"), key.as_bytes()),
        Vec::<PathBuf>::new(),
        "the key of keys is in no backup"
    );
}

#[test]
fn both_suites_restore() {
    for suite in [Suite::Intl, Suite::Gm] {
        let place = Place::new();
        let mut options = StoreOptions::new(place.path("data"));
        options.key_file = place.path("master.key");
        options.suite = suite;
        let store = Store::open(&options).unwrap();
        say(&store, "alice", SECRET);
        backup(&store, &place.target());
        place.restore(None, "restored").unwrap();
        assert_eq!(remembered(&place.open("restored"), "alice", SECRET), [SECRET]);
    }
}

#[test]
fn what_is_in_the_target_is_not_sent_again_and_what_is_missing_there_is() {
    let place = Place::new();
    let store = place.store();
    fill(&store, "first", 3_000);
    let first = backup(&store, &place.target());
    assert!(first.bytes_sent > 2_500_000, "{first:?}");
    fill(&store, "second", 10);
    let second = backup(&store, &place.target());
    assert!(second.bytes_sent < first.bytes_sent / 4, "{second:?} after {first:?}");
    assert!(second.bytes_sent < second.bytes - first.bytes + 100_000, "{second:?} after {first:?}");
    // Somebody removed an object: the next backup is whole all the same.
    let largest = files(&place.path("target/objects")).into_iter().max_by_key(|file| fs::metadata(file).unwrap().len());
    fs::remove_file(largest.unwrap()).unwrap();
    assert!(matches!(place.verify(None), Err(ArchiveError::Missing { .. })));
    let third = backup(&store, &place.target());
    assert!(third.bytes_sent > 1_000_000, "{third:?}");
    place.verify(None).unwrap();
    place.restore(None, "restored").unwrap();
    assert_eq!(place.open("restored").messages(T1, conversation(T1, "first"), None, 9_999).unwrap().len(), 3_000);
}

#[test]
fn older_backups_go_with_what_only_they_held() {
    let place = Place::new();
    let store = place.store();
    let mut ids = Vec::new();
    for n in 0..5 {
        fill(&store, &format!("round {n}"), 200);
        let done = store.backup(&place.target(), 2, &free()).unwrap();
        ids.push(done.id);
        assert_eq!(done.removed, usize::from(n >= 2));
    }
    let listed = BackupReader::list(&place.target()).unwrap();
    let listed: Vec<String> = listed.into_iter().map(|it| it.state.unwrap().id).collect();
    assert_eq!(listed, ids[3..]);
    let needed = ids[3..].iter().map(|id| place.verify(Some(id)).unwrap()).max().unwrap();
    let there = files(&place.path("target/objects")).len();
    assert!(there < 2 * needed + 1 && there >= needed, "{there} objects, {needed} in one backup");
    // Nobody knows what a damaged manifest names, so no object goes.
    let older = files(&place.path("target/manifests")).into_iter().min().unwrap();
    fs::write(&older, b"millrace-backup 1\n").unwrap();
    let stray = files(&place.path("target/objects")).pop().unwrap().with_file_name("0123.part");
    fs::write(&stray, b"what a crash left").unwrap();
    store.backup(&place.target(), 0, &free()).unwrap();
    assert!(stray.exists());
    store.backup(&place.target(), 2, &free()).unwrap();
    assert!(!stray.exists(), "the damaged one aged out, and everything can be told apart again");
    assert!(BackupReader::list(&place.target()).unwrap().iter().all(|it| it.state.is_ok()));
    place.verify(None).unwrap();
}

#[test]
fn damage_in_the_target_is_told_and_never_restored() {
    let place = Place::new();
    let store = place.store();
    say(&store, "alice", SECRET);
    fill(&store, "alice", 100);
    backup(&store, &place.target());
    let objects = files(&place.path("target/objects"));
    let manifest = place.only("manifests");
    let keys = place.only("keys");
    for file in objects.iter().chain([&manifest, &keys]) {
        let whole = fs::read(file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 4;
        let mut longer = whole.clone();
        longer.push(0);
        for (what, bytes) in [
            ("flipped", Some(flipped)),
            ("cut", Some(whole[..whole.len() / 2].to_vec())),
            ("cut by a byte", Some(whole[..whole.len() - 1].to_vec())),
            ("longer", Some(longer)),
            ("empty", Some(Vec::new())),
            ("missing", None),
        ] {
            match bytes {
                Some(bytes) => fs::write(file, bytes).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            let verified = place.verify(None).expect_err(what);
            let restored = place.restore(None, "restored").expect_err(what);
            for error in [verified, restored] {
                let told = matches!(
                    error,
                    ArchiveError::Damaged { .. }
                        | ArchiveError::Missing { .. }
                        | ArchiveError::NoBackup { .. }
                        | ArchiveError::Target { .. }
                );
                assert!(told, "{what} {}: {error}", file.display());
            }
            assert!(!place.path("restored").exists());
            fs::write(file, &whole).unwrap();
        }
    }
    assert!(place.verify(None).unwrap() >= objects.len());
    let left: Vec<PathBuf> = files(place.folder.path());
    assert!(left.iter().all(|file| !file.to_string_lossy().contains("restoring")), "{left:?}");
}

#[test]
fn objects_that_change_places_are_noticed() {
    let place = Place::new();
    let store = place.store();
    fill(&store, "alice", 50);
    backup(&store, &place.target());
    let mut objects = files(&place.path("target/objects"));
    objects.sort_by_key(|file| fs::metadata(file).unwrap().len());
    let (one, other) = (objects.pop().unwrap(), objects.pop().unwrap());
    let bytes = fs::read(&one).unwrap();
    fs::copy(&other, &one).unwrap();
    fs::write(&other, bytes).unwrap();
    assert!(place.verify(None).is_err());
}

#[test]
fn another_key_of_keys_is_named_and_an_older_one_goes_on_opening_its_backups() {
    let place = Place::new();
    let store = place.store();
    say(&store, "alice", SECRET);
    fill(&store, "alice", 1_000);
    let first = backup(&store, &place.target());
    fs::copy(place.path("master.key"), place.path("old.key")).unwrap();
    let (sender, receiver) = mpsc::channel();
    store.rotate_master_key(Box::new(move |result| sender.send(result.is_ok()).unwrap())).unwrap();
    assert!(receiver.recv().unwrap());
    let second = backup(&store, &place.target());
    assert!(second.bytes_sent < first.bytes_sent / 2, "a new key of keys sends nothing again: {second:?}");
    let error = place.restore(Some(&first.id), "restored").unwrap_err();
    let ArchiveError::WrongKey { needed, found, .. } = &error else { panic!("{error}") };
    assert_ne!(needed, found);
    place.restore(Some(&second.id), "restored").unwrap();
    assert_eq!(remembered(&place.open("restored"), "alice", SECRET), [SECRET]);

    fs::rename(place.path("old.key"), place.path("master.key")).unwrap();
    assert!(matches!(place.verify(Some(&second.id)), Err(ArchiveError::WrongKey { .. })));
    place.restore(Some(&first.id), "older").unwrap();
    assert_eq!(remembered(&place.open("older"), "alice", SECRET), [SECRET]);
    fs::remove_file(place.path("master.key")).unwrap();
    assert!(matches!(place.verify(None), Err(ArchiveError::NoKey(_))));
}

#[test]
fn a_restore_overwrites_nothing_and_says_what_it_does_not_find() {
    let place = Place::new();
    let store = place.store();
    assert!(matches!(place.restore(None, "restored"), Err(ArchiveError::NoBackup { .. })));
    say(&store, "alice", SECRET);
    let done = backup(&store, &place.target());
    fs::create_dir_all(place.path("full")).unwrap();
    fs::write(place.path("full/precious"), b"mine").unwrap();
    assert!(matches!(place.restore(None, "full"), Err(ArchiveError::NotEmpty(_))));
    assert!(matches!(place.restore(None, "data"), Err(ArchiveError::NotEmpty(_))));
    assert!(matches!(place.restore(Some("00000000-9"), "x"), Err(ArchiveError::NoBackup { .. })));
    fs::create_dir_all(place.path("empty")).unwrap();
    place.restore(Some(&done.id), "empty").unwrap();

    // Two data folders in one target: the newest is not a guess.
    let restored = place.open("empty");
    let other = backup(&restored, &place.target());
    assert_ne!(other.id.split('-').next(), done.id.split('-').next(), "a restored folder begins a line of its own");
    let error = place.verify(None).unwrap_err();
    assert!(matches!(&error, ArchiveError::Ambiguous { ids, .. } if ids.contains(&other.id)), "{error}");
    for id in [&done.id, &other.id] {
        place.verify(Some(id)).unwrap();
    }
    // Removing the older ones of one line leaves the other alone.
    restored.backup(&place.target(), 1, &free()).unwrap();
    place.verify(Some(&done.id)).unwrap();
}

#[test]
fn a_store_in_memory_has_nothing_to_copy_and_one_run_is_enough() {
    let place = Place::new();
    let mut options = StoreOptions::new(place.path("memory"));
    options.backend = BackendKind::Memory;
    let store = Store::open(&options).unwrap();
    assert!(matches!(store.backup(&place.target(), 0, &free()), Err(ArchiveError::NoFiles)));

    let store = place.store();
    let other = store.clone();
    let target = Faulty::new(place.target());
    *target.first_put.lock().unwrap() = Some(Box::new({
        let inner = place.target();
        move || assert!(matches!(other.backup(&inner, 0, &free()), Err(ArchiveError::Running)))
    }));
    backup(&store, &target);
}

/// A target that can be made to fail, and that counts.
struct Faulty {
    inner: Folder,
    puts: AtomicUsize,
    /// Puts that work; later ones find the target full.
    room: AtomicUsize,
    first_put: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Faulty {
    fn new(inner: Folder) -> Self {
        Self { inner, puts: AtomicUsize::new(0), room: AtomicUsize::new(usize::MAX), first_put: Default::default() }
    }

    fn count(&self) -> Result<(), TargetError> {
        if let Some(act) = self.first_put.lock().unwrap().take() {
            act();
        }
        match self.puts.fetch_add(1, SeqCst) < self.room.load(SeqCst) {
            true => Ok(()),
            false => Err(TargetError::NoSpace("no space left on device".into())),
        }
    }
}

impl Target for Faulty {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        self.count()?;
        self.inner.put(name, bytes, budget)
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        self.count()?;
        self.inner.put_new(name, bytes, budget)
    }

    fn get(&self, name: &str, bytes_max: u64, budget: &Budget) -> Result<Vec<u8>, TargetError> {
        self.inner.get(name, bytes_max, budget)
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, TargetError> {
        self.inner.get_range(name, range)
    }

    fn list(&self, folder: &str) -> Result<Vec<Object>, TargetError> {
        self.inner.list(folder)
    }

    fn remove(&self, name: &str) -> Result<(), TargetError> {
        self.inner.remove(name)
    }
}

#[test]
fn a_full_target_is_told_and_the_next_run_goes_on_from_there() {
    let place = Place::new();
    let store = place.store();
    fill(&store, "alice", 200);
    let whole = Faulty::new(Folder::new(place.path("elsewhere")));
    backup(&store, &whole);
    let puts = whole.puts.load(SeqCst);
    for room in [0, 1, puts / 2, puts - 2] {
        let folder = Folder::new(place.path(&format!("target {room}")));
        let target = Faulty::new(folder.clone());
        target.room.store(room, SeqCst);
        let error = store.backup(&target, 0, &free()).unwrap_err();
        let full = matches!(&error, ArchiveError::Target { source: TargetError::NoSpace(_), .. });
        assert!(full, "{room}: {error}");
        assert_eq!(BackupReader::list(&folder).unwrap().len(), 0, "no manifest, no backup");
        assert!(!place.path("data/backup.tmp").exists());
        let target = Faulty::new(folder.clone());
        backup(&store, &target);
        assert!(target.puts.load(SeqCst) < puts || room < 2, "what was sent is not sent again");
        let reader = BackupReader::new(&folder, &KeySource::File, &place.path("master.key")).unwrap();
        reader.verify(None, &free()).unwrap();
    }
    // The store went on all the time.
    store.commit(numbered(0)).unwrap();
}

#[test]
fn a_stop_ends_a_backup_and_nothing_is_lost() {
    let place = Place::new();
    let store = place.store();
    fill(&store, "alice", 200);
    let budget = Budget::new(0);
    budget.stop();
    assert!(matches!(store.backup(&place.target(), 0, &budget), Err(ArchiveError::Stopped)));
    backup(&store, &place.target());
    place.verify(None).unwrap();
}

#[test]
fn whoever_is_forgotten_is_in_no_backup_any_more() {
    let place = Place::new();
    let store = place.store();
    say(&store, "alice", SECRET);
    say(&store, "bob", "a boat called Windhover");
    let old = backup(&store, &place.target());
    let slots = fs::read(place.path("data/user-keys")).unwrap();
    let sealed: Vec<&[u8]> = slots.chunks(128).skip(1).map(|slot| &slot[17..115]).collect();
    let kept = |place: &Place| sealed.iter().filter(|key| !holding(&place.path("target"), key).is_empty()).count();
    assert_eq!(kept(&place), 2);

    let mut batch = Batch::new();
    let note = Store::backup_keys_due(&mut batch, [1; 16]);
    store.commit(batch).unwrap();
    forget(&store, "alice");
    assert_eq!(store.backup_keys_noted().unwrap(), std::slice::from_ref(&note));
    assert_eq!(kept(&place), 2, "until the copy is overwritten the key is in it");
    assert_eq!(store.backup_places().unwrap(), [place.target().place()]);
    // A disk that is not mounted: nothing is made in its place, and the copy on it is not taken for overwritten.
    fs::rename(place.path("target"), place.path("unmounted")).unwrap();
    let away = store.renew_backup_keys(&place.target(), &free());
    assert!(matches!(away, Err(ArchiveError::Away { .. })) && !place.path("target").exists(), "{away:?}");
    fs::rename(place.path("unmounted"), place.path("target")).unwrap();
    store.renew_backup_keys(&place.target(), &free()).unwrap();
    store.backup_keys_renewed(&[note]).unwrap();
    assert_eq!(store.backup_keys_noted().unwrap(), []);
    assert_eq!(kept(&place), 1);

    place.restore(Some(&old.id), "restored").unwrap();
    let restored = place.open("restored");
    let error = restored.session(T1, conversation(T1, "alice")).unwrap_err();
    assert!(matches!(error, ReadError::Forgotten { tenant: 1 }), "{error}");
    assert_eq!(remembered(&restored, "alice", SECRET), Vec::<String>::new());
    assert_eq!(remembered(&restored, "bob", "Windhover"), ["a boat called Windhover"]);

    // The restored store is another line; what it forgets leaves the older line's copy too.
    say(&restored, "carol", "I am new here");
    assert_eq!(restored.backup_places().unwrap(), [place.target().place()]);
    forget(&restored, "bob");
    restored.renew_backup_keys(&place.target(), &free()).unwrap();
    assert_eq!(kept(&place), 0);
    place.verify(Some(&old.id)).unwrap();
    // And what it does not know is untouched: the first store's newer users.
    say(&store, "dora", "my bicycle is called Rosinante");
    let newer = backup(&store, &place.target());
    restored.renew_backup_keys(&place.target(), &free()).unwrap();
    place.restore(Some(&newer.id), "again").unwrap();
    assert_eq!(remembered(&place.open("again"), "dora", "bicycle"), ["my bicycle is called Rosinante"]);
}

#[test]
fn secrets_of_channels_come_along() {
    let place = Place::new();
    let store = place.store();
    let open = |name: &str| {
        millrace_storage::Vault::open(&place.path(name), &KeySource::File, &place.path("master.key"), false).unwrap()
    };
    open("data").put("telegram/main", b"a token").unwrap();
    backup(&store, &place.target());
    place.restore(None, "restored").unwrap();
    assert_eq!(open("restored").get("telegram/main").unwrap().unwrap().as_slice(), b"a token");
}

/// The child of the kill test: writes and makes backups until it is killed.
#[test]
#[ignore = "run by the kill test in a process of its own"]
fn child_that_is_killed_in_a_backup() {
    use std::io::Write;
    let Ok(folder) = std::env::var("MILLRACE_KILL_FOLDER") else { return };
    let folder = PathBuf::from(folder);
    let store = rocks(&folder.join("data"));
    let start = store.meta("left").unwrap().map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()) + 1);
    let say = |text: String| {
        println!("{text}");
        std::io::stdout().flush().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in start.. {
                store.commit(numbered(n)).unwrap();
                say(format!("wrote {n}"));
            }
        });
        scope.spawn(|| {
            loop {
                let done = store.backup(&Folder::new(folder.join("target")), 2, &Budget::new(4 << 20)).unwrap();
                say(format!("backup {}", done.id));
            }
        });
    });
}

#[test]
fn a_kill_in_the_middle_leaves_older_backups_whole_and_the_next_one_works() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let seed = crate::common::seed();
    let mut random = crate::common::Random::new(seed);
    let key = folder.path().join("data/store.key");
    let target = Folder::new(folder.path().join("target"));
    let (mut wrote, mut finished) = (0, 0);
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "backups::child_that_is_killed_in_a_backup", "--ignored", "--nocapture"])
            .env("MILLRACE_KILL_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = usize::try_from(20 + random.below(200)).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let known = |line: &String| line.starts_with("wrote ") || line.starts_with("backup ");
        for line in lines.filter(known).take(wanted) {
            match line.split_once(' ').unwrap() {
                ("wrote", n) => wrote = n.parse().unwrap(),
                _ => finished += 1,
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever has a manifest is a whole backup.
        let reader = BackupReader::new(&target, &KeySource::File, &key).unwrap();
        for listed in BackupReader::list(&target).unwrap() {
            reader.verify(Some(&listed.id), &free()).unwrap_or_else(|error| panic!("seed {seed}, {round}: {error}"));
        }
        let store = rocks(&folder.path().join("data"));
        assert!(last_of_writer(&store) >= wrote);
        store.clear_backup_leftovers().unwrap();
        let done = backup(&store, &target);
        let into = folder.path().join(format!("restored {round}"));
        reader.restore(Some(&done.id), &into, &free()).unwrap();
        fs::copy(&key, into.join("store.key")).unwrap();
        assert_eq!(last_of_writer(&rocks(&into)), last_of_writer(&store));
        fs::remove_dir_all(Path::new(&into)).unwrap();
    }
    println!("{finished} backups were finished before a kill");
}
