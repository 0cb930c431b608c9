//! Manifests of backups, as somebody who can write to the target may leave them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::backup::{Ancestor, Manifest};
use millrace_proto::digest::{base64, ed25519_public, ed25519_sign, hex};

const SEED: [u8; 32] = [1; 32];

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::read(bytes) {
        assert_eq!(manifest.to_bytes(&SEED).len(), bytes.len(), "there is one way to write one");
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = Ancestor::read(&text);
    // Under a good head and signature, so that the lists between them are reached as well.
    let head = "millrace-backup 1\nline 03030303030303030303030303030303\nnumber 17\nmade_ms 1\nschema 4\nseq 8\nslots 1\n";
    let (wrapped, public) = (base64(&[6; 60]), hex(&ed25519_public(&SEED)));
    let signed = format!("{head}key 0505050505050505\nwrapped {wrapped}\npublic {public}\n{text}\n");
    let signature = hex(&ed25519_sign(&SEED, format!("millrace backup manifest 1\n{signed}").as_bytes()));
    if let Ok(manifest) = Manifest::read(format!("{signed}signature {signature}\n").as_bytes()) {
        assert!(manifest.files.iter().all(|file| !file.name.contains("..") && !file.name.starts_with('/')));
        assert!(manifest.files.iter().all(|file| file.parts.iter().map(|part| part.bytes).sum::<u64>() == file.bytes));
    }
});
