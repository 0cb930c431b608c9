//! Corpora: whole documents or none, replaced by content, found by words and by meaning, per tenant.

use crate::common::{Random, T1, T2, over, rocks, seed};
use millrace_proto::document::{Passage, Place};
use millrace_proto::id::TenantId;
use millrace_storage::{
    Begun, CorpusHit, CorpusQuery, DocumentRecord, Fault, MemoryBackend, NewDocument, Store, StoreOptions,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const MODEL: &str = "mini";

fn new(name: &str, hash: u8, tags: &[&str]) -> NewDocument {
    NewDocument {
        name: name.into(),
        hash: [hash; 32],
        kind: "pdf".into(),
        bytes: 10,
        tags: tags.iter().map(|tag| (*tag).into()).collect(),
        notes: Vec::new(),
        added_ms: 5,
    }
}

fn passage(page: u32, heading: &str, text: &str) -> Passage {
    Passage {
        headings: vec![heading.into()],
        place: Some(Place::Page(page)),
        page_last: page,
        rows: None,
        text: text.into(),
    }
}

fn add(
    store: &Store,
    tenant: TenantId,
    corpus: &str,
    new: NewDocument,
    passages: &[(Passage, Vec<f32>)],
) -> DocumentRecord {
    let Begun::Writer(mut writer) = store.begin_document(tenant, corpus, MODEL, new).expect("begins") else {
        panic!("it is unchanged")
    };
    for (passage, vector) in passages {
        writer.put(passage.clone(), vector.clone()).expect("put");
    }
    writer.finish().expect("finished")
}

fn query(tenant: TenantId, text: &str, embedding: Option<Vec<f32>>) -> CorpusQuery {
    CorpusQuery {
        tenant,
        corpora: vec!["handbook".into()],
        text: text.into(),
        embedding,
        tags: Vec::new(),
        limit: 10,
        relevance_min: 0.0,
    }
}

fn found(store: &Store, query: &CorpusQuery) -> Vec<CorpusHit> {
    store.search_corpora_here(query).expect("searched")
}

fn axis(at: usize) -> Vec<f32> {
    let mut vector = vec![0.0; 8];
    vector[at] = 1.0;
    vector
}

#[test]
fn passages_are_found_by_words_and_by_meaning_and_cite_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let passages = [
        (passage(1, "Travel", "Employees travel second class."), axis(0)),
        (passage(2, "Leave", "Fifteen days of leave are granted."), axis(1)),
        (passage(3, "住宿", "每晚住宿费不得超过八百元人民币。"), axis(2)),
    ];
    add(&store, T1, "handbook", new("rules.pdf", 1, &["hr"]), &passages);
    let by_words = found(&store, &query(T1, "how many days of leave", None));
    assert_eq!(by_words[0].passage.citation(), "page 2, Leave");
    assert_eq!((by_words[0].document.as_str(), by_words[0].part), ("rules.pdf", 1));
    assert_eq!(found(&store, &query(T1, "住宿费", None))[0].passage.citation(), "page 3, 住宿");
    assert_eq!(found(&store, &query(T1, "travelling", None))[0].part, 0, "stems and headings count");
    let by_meaning = found(&store, &query(T1, "zzz", Some(axis(2))));
    assert_eq!((by_meaning[0].part, by_meaning[0].relevance), (2, 1.0));
    assert_eq!(found(&store, &query(T2, "leave", Some(axis(1)))), [], "another tenant sees nothing");
    let tagged = |tag: &str| found(&store, &CorpusQuery { tags: vec![tag.into()], ..query(T1, "leave", None) }).len();
    assert_eq!((tagged("hr"), tagged("it")), (1, 0));
    assert_eq!(found(&store, &query(T1, "", None)), []);
    let strict = CorpusQuery { relevance_min: 0.9, ..query(T1, "leave entitlement of contractors", None) };
    assert_eq!(found(&store, &strict), []);
}

#[test]
fn the_same_file_changes_nothing_and_a_changed_one_replaces_its_passages() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let first = add(&store, T1, "handbook", new("a.md", 1, &[]), &[(passage(1, "h", "the harbour opens"), axis(0))]);
    let again = store.begin_document(T1, "handbook", MODEL, new("a.md", 1, &[])).unwrap();
    assert!(matches!(again, Begun::Unchanged(known) if known == first));
    let changed =
        add(&store, T1, "handbook", new("a.md", 2, &[]), &[(passage(1, "h", "the harbour is shut"), axis(1))]);
    assert_ne!(changed.number, first.number);
    let hits = found(&store, &query(T1, "harbour", Some(axis(0))));
    assert_eq!(hits.len(), 1, "{hits:?}");
    assert_eq!(hits[0].passage.text, "the harbour is shut");
    let head = store.corpus(T1, "handbook").unwrap().unwrap();
    assert_eq!((head.documents, head.passages), (1, 1));
    assert_eq!(store.sweep_corpus(T1, "handbook").unwrap(), 0, "nothing is left over");
    assert!(matches!(store.begin_document(T1, "handbook", MODEL, new("a.md", 2, &["new"])).unwrap(), Begun::Writer(_)));
}

#[test]
fn an_unfinished_document_is_invisible_and_swept() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    add(&store, T1, "handbook", new("old.md", 1, &[]), &[(passage(1, "h", "the old lantern"), axis(0))]);
    let Begun::Writer(mut writer) = store.begin_document(T1, "handbook", MODEL, new("old.md", 2, &[])).unwrap() else {
        panic!("it is changed")
    };
    for number in 0..100 {
        writer.put(passage(number, "h", &format!("the new lantern {number}")), axis(1)).unwrap();
    }
    drop(writer);
    store.shutdown();
    // What a start after a crash finds.
    let store = over(folder.path(), &kv);
    let hits = found(&store, &query(T1, "lantern", Some(axis(1))));
    assert_eq!(hits.iter().map(|hit| hit.passage.text.as_str()).collect::<Vec<_>>(), ["the old lantern"]);
    assert_eq!(store.documents(T1, "handbook", 0, 10).unwrap().len(), 1);
    assert_eq!(store.sweep_corpus(T1, "handbook").unwrap(), 1);
    assert_eq!(found(&store, &query(T1, "new", None)), []);
    assert_eq!(store.sweep_corpus(T1, "handbook").unwrap(), 0);
}

#[test]
fn a_full_disk_keeps_the_old_document() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    add(&store, T1, "handbook", new("a.md", 1, &[]), &[(passage(1, "h", "the old lantern"), axis(0))]);
    let Begun::Writer(mut writer) = store.begin_document(T1, "handbook", MODEL, new("a.md", 2, &[])).unwrap() else {
        panic!("it is changed")
    };
    writer.put(passage(1, "h", "the new lantern"), axis(1)).unwrap();
    kv.inject(Fault::NoSpace);
    assert!(writer.finish().is_err());
    assert_eq!(found(&store, &query(T1, "lantern", None))[0].passage.text, "the old lantern");
}

#[test]
fn a_removed_document_and_a_removed_corpus_leave_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    add(&store, T1, "handbook", new("a.md", 1, &[]), &[(passage(1, "h", "walnut"), axis(0))]);
    let many: Vec<_> = (0..70).map(|number| (passage(number, "h", &format!("walnut {number}")), axis(1))).collect();
    add(&store, T1, "handbook", new("b.md", 2, &[]), &many);
    add(&store, T1, "other", new("a.md", 1, &[]), &[(passage(1, "h", "walnut"), axis(0))]);
    assert!(!store.remove_document(T1, "handbook", "none.md").unwrap());
    assert!(store.remove_document(T1, "handbook", "b.md").unwrap());
    assert!(store.document(T1, "handbook", "b.md").unwrap().is_none());
    assert_eq!(found(&store, &query(T1, "walnut", Some(axis(1)))).len(), 1);
    assert_eq!(
        store.corpora(T1).unwrap().iter().map(|head| head.name.as_str()).collect::<Vec<_>>(),
        ["handbook", "other"]
    );
    assert!(store.remove_corpus(T1, "handbook").unwrap());
    assert!(!store.remove_corpus(T1, "handbook").unwrap());
    assert_eq!(store.corpora(T1).unwrap().len(), 1);
    assert_eq!(found(&store, &query(T1, "walnut", Some(axis(0)))), []);
    let other = CorpusQuery { corpora: vec!["other".into()], ..query(T1, "walnut", None) };
    assert_eq!(found(&store, &other).len(), 1);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let refused = |corpus: &str, model: &str, new: NewDocument| match store.begin_document(T1, corpus, model, new) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was taken"),
    };
    for corpus in ["", "a b", "../x", "ü", &"x".repeat(65)] {
        assert!(refused(corpus, MODEL, new("a.md", 1, &[])).contains("a corpus is named by"), "{corpus}");
    }
    assert!(refused("handbook", MODEL, new("", 1, &[])).contains("name"));
    assert!(refused("handbook", MODEL, new("a\nb", 1, &[])).contains("name"));
    assert!(refused("handbook", MODEL, new("a.md", 1, &[""])).contains("tags"));
    add(&store, T1, "handbook", new("a.md", 1, &[]), &[(passage(1, "h", "x"), axis(0))]);
    let other = refused("handbook", "larger", new("b.md", 1, &[]));
    assert!(other.contains("\"mini\"") && other.contains("\"larger\"") && other.contains("add its documents again"));
}

/// Random adds, changes and removals against a map; a restart in between.
#[test]
fn whatever_is_done_a_search_finds_what_a_map_holds() {
    let mut random = Random::new(seed());
    let folder = tempfile::tempdir().unwrap();
    let mut store = rocks(folder.path());
    let mut model: BTreeMap<String, (u8, usize)> = BTreeMap::new();
    for step in 0..60 {
        let name = format!("d{}.md", random.below(6));
        match random.below(4) {
            0 => {
                let known = model.remove(&name).is_some();
                assert_eq!(store.remove_document(T1, "handbook", &name).unwrap(), known, "step {step}");
            }
            1 if step % 7 == 0 => {
                store.shutdown();
                drop(store);
                store = rocks(folder.path());
            }
            _ => {
                let hash = random.below(3) as u8;
                let count = 1 + random.below(40) as usize;
                let begun = store.begin_document(T1, "handbook", MODEL, new(&name, hash, &[])).unwrap();
                match (begun, model.get(&name)) {
                    (Begun::Unchanged(document), Some((known, parts))) => {
                        assert_eq!((hash, document.passages as usize), (*known, *parts));
                    }
                    (Begun::Writer(mut writer), known) => {
                        assert!(known.is_none_or(|(known, _)| *known != hash), "step {step}");
                        for part in 0..count {
                            let text = format!("meadow {} {hash} {part}", name.replace('.', "x"));
                            writer.put(passage(part as u32, "h", &text), random.unit(8)).unwrap();
                        }
                        writer.finish().unwrap();
                        model.insert(name, (hash, count));
                    }
                    (Begun::Unchanged(_), None) => panic!("step {step}: it was removed"),
                }
            }
        }
        let head = store.corpus(T1, "handbook").unwrap();
        let parts: usize = model.values().map(|(_, parts)| *parts).sum();
        assert_eq!(head.map_or(0, |head| head.passages as usize), parts, "step {step}");
        for (name, (hash, parts)) in &model {
            let text = format!("{} {hash}", name.replace('.', "x"));
            let hits = found(&store, &CorpusQuery { limit: 100, ..query(T1, &text, None) });
            let of = hits.iter().filter(|hit| &hit.document == name).count();
            assert_eq!(of, (*parts).min(100), "step {step}: {name}");
        }
    }
}

#[test]
fn the_memory_type_holds_corpora_too() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { backend: millrace_storage::BackendKind::Memory, ..StoreOptions::new(folder.path()) };
    let store = Store::open(&options).unwrap();
    add(&store, T1, "handbook", new("a.md", 1, &[]), &[(passage(1, "h", "ember"), axis(0))]);
    assert_eq!(found(&store, &query(T1, "ember", Some(axis(0)))).len(), 1);
}
