//! Opening: every refusal says what, why and what to do next.

use crate::common::rocks;
use millrace_storage::{Batch, Cf, KvOp, KvStore, MemoryBackend, OpenError, Store, StoreOptions};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

#[test]
fn a_second_opener_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let first = rocks(folder.path());
    let error = Store::open(&StoreOptions::new(folder.path())).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
    drop(first);
    rocks(folder.path());
}

#[test]
fn the_key_file_decides() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(folder.path());
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.put_meta("a", b"b");
    store.commit(batch).unwrap();
    drop(store);
    let mode = fs::metadata(&options.key_file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let good = fs::read(&options.key_file).unwrap();

    fs::remove_file(&options.key_file).unwrap();
    let error = Store::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::KeyMissing { .. }), "{error}");
    assert!(!options.key_file.exists(), "no new key was made over sealed data");

    let write = |text: &[u8], mode| {
        fs::write(&options.key_file, text).unwrap();
        fs::set_permissions(&options.key_file, fs::Permissions::from_mode(mode)).unwrap();
    };
    write(format!("millrace-key-1 {}\n", "ab".repeat(32)).as_bytes(), 0o600);
    let error = Store::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("Put back the key file"), "{error}");

    write(b"not a key", 0o600);
    assert!(matches!(Store::open(&options).unwrap_err(), OpenError::KeyMalformed { .. }));

    write(&good, 0o644);
    assert!(matches!(Store::open(&options).unwrap_err(), OpenError::KeyExposed { .. }));

    write(&good, 0o600);
    assert_eq!(Store::open(&options).unwrap().meta("a").unwrap().as_deref(), Some(&b"b"[..]));
}

#[test]
fn a_store_of_a_newer_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    kv.apply(&[KvOp::Put(Cf::Ctl, b"schema".to_vec(), 999u32.to_be_bytes().to_vec())], true).unwrap();
    let error = Store::open_on(&StoreOptions::new(folder.path()), kv.clone()).unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 999, .. }), "{error}");
    assert_eq!(kv.dump().len(), 1, "nothing was written");
    assert!(!folder.path().join("store.key").exists());
}

#[test]
fn a_damaged_control_row_is_an_error_and_not_a_fresh_start() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    drop(Store::open_on(&StoreOptions::new(folder.path()), kv.clone()).unwrap());
    for bad in [vec![], vec![1], vec![0; 4]] {
        kv.apply(&[KvOp::Put(Cf::Ctl, b"schema".to_vec(), bad)], true).unwrap();
        let error = Store::open_on(&StoreOptions::new(folder.path()), kv.clone()).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"x").unwrap();
    let error = Store::open(&StoreOptions::new(file.join("data"))).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert!(error.to_string().contains("create the data folder"), "{error}");
}

#[test]
fn damaged_database_files_are_found_at_the_start_or_at_the_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    for n in 0..2_000 {
        batch.put_meta(&format!("name {n}"), &[n as u8; 100]);
    }
    store.commit(batch).unwrap();
    store.shutdown();
    drop(store);
    for entry in fs::read_dir(folder.path().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "sst") {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..].iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
            fs::write(&path, bytes).unwrap();
        }
    }
    match Store::open(&StoreOptions::new(folder.path())) {
        Err(error) => assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::Backend { .. }), "{error}"),
        Ok(store) => {
            let wrong = (0..2_000).filter(|n| match store.meta(&format!("name {n}")) {
                Ok(value) => value.as_deref() != Some(&[*n as u8; 100][..]),
                Err(_) => false,
            });
            assert_eq!(wrong.count(), 0, "a damaged row is an error, never other bytes and never absent");
            let failed = (0..2_000).filter(|n| store.meta(&format!("name {n}")).is_err()).count();
            assert!(failed > 0, "the damage was noticed");
        }
    }
}

#[test]
fn a_checkpoint_is_a_store_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("a"));
    let mut batch = Batch::new();
    batch.put_meta("a", b"before");
    store.commit(batch).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    store.checkpoint(&folder.path().join("b/db")).unwrap();
    let mut batch = Batch::new();
    batch.put_meta("a", b"after");
    store.commit(batch).unwrap();
    let mut options = StoreOptions::new(folder.path().join("b"));
    options.key_file = folder.path().join("a/store.key");
    let copy = Store::open(&options).unwrap();
    assert_eq!(copy.meta("a").unwrap().as_deref(), Some(&b"before"[..]));
    assert_eq!(store.meta("a").unwrap().as_deref(), Some(&b"after"[..]));
}
