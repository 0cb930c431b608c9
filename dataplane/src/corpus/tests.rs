use super::*;
use millrace_storage::{BackendKind, CorpusQuery, StoreOptions};

fn store() -> Store {
    let folder = tempfile::tempdir().expect("a folder");
    let options = StoreOptions { backend: BackendKind::Memory, ..StoreOptions::new(folder.path()) };
    Store::open(&options).expect("opens")
}

/// Without the process of its own, which is this program and not its tests.
fn added(corpora: &Corpora, store: &Store, name: &str, text: &str) -> DocumentRecord {
    let document = millrace_proto::document::read(name, text.as_bytes()).expect("readable");
    let (tokens_max, count) = corpora.inner.counter();
    let new = NewDocument {
        name: name.to_owned(),
        hash: sha256(text.as_bytes()),
        kind: "md".into(),
        bytes: text.len() as u64,
        tags: vec!["public".into()],
        notes: Vec::new(),
        added_ms: 7,
    };
    let Begun::Writer(mut writer) = store.begin_document(TenantId(3), "docs", "", new).expect("begins") else {
        panic!("unchanged")
    };
    for passage in passages(&document.blocks, tokens_max, &*count) {
        writer.put(passage, Vec::new()).expect("stored");
    }
    writer.finish().expect("finished")
}

#[test]
fn jobs_end_and_are_remembered() {
    let store = store();
    let corpora = Corpora::start(store.clone(), None, "").expect("starts");
    let document = added(&corpora, &store, "a.md", "# Parking\n\nThe garage opens at seven.");
    assert_eq!(document.passages, 1);
    let query = |text: &str| CorpusQuery {
        tenant: TenantId(3),
        corpora: vec!["docs".into()],
        text: text.into(),
        embedding: None,
        tags: Vec::new(),
        limit: 5,
        relevance_min: 0.0,
    };
    let hits = store.search_corpora_here(&query("When does the garage open?")).expect("searched");
    assert_eq!((hits[0].document.as_str(), hits[0].passage.citation().as_str()), ("a.md", "Parking"));

    let job = corpora.submit(TenantId(3), "docs", Task::RemoveDocument { name: "a.md".into() }).expect("room");
    while !matches!(corpora.job(job).expect("kept").phase, Phase::Removed { found: true }) {
        std::thread::yield_now();
    }
    assert_eq!(store.search_corpora_here(&query("garage")).expect("searched"), []);
    let job = corpora.submit(TenantId(3), "docs", Task::RemoveCorpus).expect("room");
    while !matches!(corpora.job(job).expect("kept").phase, Phase::Removed { found: true }) {
        std::thread::yield_now();
    }
    assert_eq!(store.corpora(TenantId(3)).expect("read"), []);
    corpora.shutdown();
    assert_eq!(corpora.submit(TenantId(3), "docs", Task::RemoveCorpus), Err(Full::Closed));
}
