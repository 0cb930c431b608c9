//! Documents of other people's programs go in by the command line, are found with their page and heading,
//! and reach the context of a chat where they may be read.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use millrace_tests::server::chat;
use millrace_tests::tools::{binary, printable, python};
use millrace_tests::{Server, client};
use serde_json::{Value, json};

fn run(server: &Server, key: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary())
        .arg("corpus")
        .args(arguments)
        .current_dir(folder)
        .env("MILLRACE_URL", server.url())
        .env("MILLRACE_API_KEY", key)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn ok(server: &Server, folder: &Path, arguments: &[&str]) -> String {
    let output = run(server, &server.key, folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", printable(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn search(server: &Server, folder: &Path, corpus: &str, question: &str) -> Vec<Value> {
    let found = ok(server, folder, &["search", corpus, question, "--json"]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    found["data"].as_array().expect("a list").clone()
}

fn documents() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    python("documents.py", &["make", &folder.path().to_string_lossy()]);
    folder
}

const FILES: [&str; 9] = [
    "canteen.html",
    "lathe.eml",
    "leave.pdf",
    "note.txt",
    "plan.pptx",
    "prices.xlsx",
    "runbook.md",
    "terms.pdf",
    "travel.docx",
];

#[test]
fn every_format_is_taken_in_found_and_cited() {
    let folder = documents();
    let at = folder.path();
    let server = Server::start_default();
    let arguments: Vec<&str> =
        ["add", "office"].into_iter().chain(FILES).chain(["staff.csv", "--tag", "all"]).collect();
    let added = ok(&server, at, &arguments);
    for file in FILES {
        assert!(added.contains(&format!("{file}: ")) && !added.contains("unchanged"), "{file}: {added}");
    }
    // (question, document, citation, words of the passage)
    for (question, document, citation, words) in [
        ("Who must agree to first class?", "travel.docx", "page 1, Trains", "Okonkwo"),
        ("What may a night in Oslo cost?", "travel.docx", "page 1, Hotels > Limits", "City | Night | Breakfast"),
        ("北京住宿费", "travel.docx", "page 2, 住宿", "八百元"),
        ("price of the walnut tray", "prices.xlsx", "sheet Prices, rows 3-4", "Article | Price | Since | Stock"),
        ("Where is Hammerschmied?", "prices.xlsx", "sheet Suppliers, rows 2-900000", "Solingen"),
        ("Where does the archive move?", "plan.pptx", "slide 1, Migration plan", "Rotterdam"),
        ("cost of cables", "plan.pptx", "slide 2, Budget", "Cables | 800"),
        ("How long is the warranty of the kettle?", "terms.pdf", "page 1, Warranty", "thirty months"),
        ("年假多少天", "leave.pdf", "page 1", "十五天"),
        ("At which gate does the lathe arrive?", "lathe.eml", "Delivery of the lathe", "gate seven"),
        (
            "weight of the spindle",
            "lathe.eml",
            "rows 2-3, Delivery of the lathe > Attachment parts.csv",
            "Spindle | 18 kg",
        ),
        ("When is lunch served?", "canteen.html", "Canteen", "11:40"),
        ("Which host is the standby?", "runbook.md", "Runbook > Restart", "plover | standby"),
        ("钥匙在哪里", "note.txt", "", "三楼"),
        ("phone of Person 222", "staff.csv", "rows ", "555-0222"),
    ] {
        let hits = search(&server, at, "office", question);
        let hit = hits.first().unwrap_or_else(|| panic!("nothing for {question:?}"));
        assert_eq!(hit["document"], document, "{question}: {hits:?}");
        let cited = hit["citation"].as_str().expect("a citation");
        assert!(
            cited.starts_with(citation) && hit["text"].as_str().is_some_and(|text| text.contains(words)),
            "{question}: {hit}"
        );
    }
    let shown = ok(&server, at, &["search", "office", "How long is the warranty of the kettle?", "--limit", "1"]);
    assert!(shown.starts_with("1. terms.pdf, page 1, Warranty\n"), "{shown}");

    // Again: nothing changes. A changed file replaces its passages.
    let again = ok(&server, at, &arguments);
    assert_eq!(again.matches(": unchanged").count(), FILES.len() + 1, "{again}");
    std::fs::write(at.join("note.txt"), "The spare key lies in the red cupboard.").expect("written");
    assert!(ok(&server, at, &["add", "office", "note.txt"]).contains("note.txt: 1 passages"));
    assert_eq!(search(&server, at, "office", "Where is the spare key?")[0]["document"], "note.txt");
    assert!(search(&server, at, "office", "钥匙在哪里").iter().all(|hit| hit["document"] != "note.txt"));

    // Tags, lists, removal.
    let tagged = ok(&server, at, &["search", "office", "kettle", "--tag", "none", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&tagged).expect("JSON")["data"], json!([]));
    let listed = ok(&server, at, &["ls", "office"]);
    assert!(listed.contains("travel.docx") && listed.contains("xlsx"), "{listed}");
    assert!(ok(&server, at, &["ls"]).contains("office"));
    ok(&server, at, &["rm", "office", "terms.pdf"]);
    assert!(search(&server, at, "office", "warranty of the kettle").iter().all(|hit| hit["document"] != "terms.pdf"));
    let twice = run(&server, &server.key, at, &["rm", "office", "terms.pdf"]);
    assert!(!twice.status.success() && printable(&twice).contains("no document"), "{}", printable(&twice));
    ok(&server, at, &["rm", "office", "--all"]);
    assert!(!ok(&server, at, &["ls"]).contains("office"));
}

#[test]
fn hostile_files_end_in_clear_errors_and_the_server_goes_on() {
    let folder = documents();
    let at = folder.path().join("hostile");
    let server = Server::start_default();
    for (file, words) in [
        ("locked.pdf", "locked with a password"),
        ("locked.docx", "locked with a password"),
        ("bomb.docx", "bytes when unpacked"),
        ("nested.docx", "elements inside each other"),
        ("broken.xlsx", "cannot be read"),
        ("empty.txt", "no text"),
        ("program.exe", "no ending of a format that is read"),
        ("picture.txt", "no text"),
    ] {
        let output = run(&server, &server.key, &at, &["add", "office", file]);
        let said = printable(&output);
        assert_eq!(output.status.code(), Some(1), "{file}: {said}");
        assert!(said.contains(words) && said.contains("next:"), "{file}: {said}");
    }
    // What is left of a damaged PDF may be taken in; it must not be a crash.
    let broken = run(&server, &server.key, &at, &["add", "office", "broken.pdf"]);
    assert!(broken.status.code().is_some_and(|code| code < 2), "{}", printable(&broken));
    let large = at.join("large.txt");
    std::fs::write(&large, vec![b'a'; 33 << 20]).expect("written");
    assert!(printable(&run(&server, &server.key, &at, &["add", "office", "large.txt"])).contains("split it"));
    server.ask("Are you still there?");
    assert!(server.log().lines().all(|line| !line.contains("panicked")), "{}", server.log());
}

#[test]
fn only_admin_keys_of_the_tenant_reach_a_corpus() {
    let folder = documents();
    let server = Server::start_default();
    ok(&server, folder.path(), &["add", "office", "runbook.md"]);
    let made = |body: Value| {
        let made = server.post("/v1/admin/keys", &body).expect(201);
        made["key"].as_str().unwrap_or_else(|| panic!("no key: {made}")).to_owned()
    };
    let chat_only = made(json!({"user": "anna", "label": "chat", "scopes": ["chat"]}));
    let stranger = made(json!({"tenant": 2, "user": "boris", "label": "other", "scopes": ["chat", "admin"]}));
    let status = |key: &str, method: &str, path: &str| {
        client::request(server.http, method, path, key, &[], b"").expect("an answer").status
    };
    let paths = [
        ("GET", "/v1/admin/corpora"),
        ("GET", "/v1/admin/corpora/office/documents"),
        ("GET", "/v1/admin/corpora/office/search?q=host"),
        ("POST", "/v1/admin/corpora/office/documents?name=a.txt"),
        ("DELETE", "/v1/admin/corpora/office/documents?name=runbook.md"),
        ("DELETE", "/v1/admin/corpora/office"),
        ("GET", "/v1/admin/corpus-jobs/1"),
    ];
    for (method, path) in paths {
        assert_eq!(status("", method, path), 401, "{method} {path}");
        assert_eq!(status(&chat_only, method, path), 403, "{method} {path}");
    }
    // A tenant's corpora, documents and jobs do not exist for another one.
    for (method, path) in [paths[1], paths[2], paths[4], paths[5], paths[6]] {
        assert_eq!(status(&stranger, method, path), 404, "{method} {path}");
    }
    assert!(!printable(&run(&server, &stranger, folder.path(), &["ls"])).contains("office"));
    assert_eq!(search(&server, folder.path(), "office", "Which host is the standby?")[0]["document"], "runbook.md");
}

/// The context that a message would get in a session of the first key.
fn context(server: &Server, key: &str, text: &str) -> Value {
    let text: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/v1/sessions/new/context?text={text}");
    let reply = client::request(server.http, "GET", &path, key, &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_str(&reply.text()).expect("JSON")
}

#[test]
fn a_chat_is_answered_from_the_corpora_that_it_may_read_and_says_where() {
    let folder = documents();
    let question = "How long does the warranty of the kettle last?";
    let mut server = Server::builder().env("MILLRACE_AGENT_CORPORA", "office").start();
    ok(&server, folder.path(), &["add", "office", "terms.pdf"]);
    ok(&server, folder.path(), &["add", "secret", "travel.docx"]);
    let seen = context(&server, &server.key, question);
    let fact = &seen["facts"][0];
    assert_eq!(fact["citation"], "terms.pdf, page 1, Warranty", "{seen}");
    let prompt = seen["messages"].to_string();
    assert!(
        prompt.contains("[terms.pdf, page 1, Warranty] The warranty of the kettle lasts thirty months."),
        "{prompt}"
    );
    assert!(!context(&server, &server.key, "Who agrees to first class?").to_string().contains("Okonkwo"));
    // The turn itself takes the same way.
    let mut body = chat(question, 8);
    body["session"] = json!("monday");
    server.post("/v1/chat/completions", &body).expect(200);
    // Another tenant has no corpus of this name.
    let made =
        server.post("/v1/admin/keys", &json!({"tenant": 2, "user": "b", "label": "o", "scopes": ["chat"]})).expect(201);
    let key = made["key"].as_str().expect("a key").to_owned();
    assert!(!context(&server, &key, question).to_string().contains("thirty months"));
    // Without the setting nothing is read; documents outlive the restart.
    server.kill();
    server.reconfigure(|builder| builder.env("MILLRACE_AGENT_CORPORA", ""));
    server.restart();
    assert!(!context(&server, &server.key, question).to_string().contains("thirty months"));
    assert_eq!(search(&server, folder.path(), "office", question)[0]["citation"], "page 1, Warranty");
}

#[test]
fn a_book_of_five_hundred_pages_is_taken_in_and_every_page_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    python("documents.py", &["book", &folder.path().join("book.pdf").to_string_lossy(), "500"]);
    let server = Server::start_default();
    let began = Instant::now();
    let added = ok(&server, folder.path(), &["add", "library", "book.pdf"]);
    println!("500 pages in {:?}: {added}", began.elapsed());
    for chapter in [1, 250, 500] {
        let hits = search(&server, folder.path(), "library", &format!("code of chapter {chapter}"));
        let code = (chapter * 37 + 1000).to_string();
        let hit = hits.iter().find(|hit| hit["text"].as_str().is_some_and(|text| text.contains(&code)));
        let hit = hit.unwrap_or_else(|| panic!("chapter {chapter} is not found: {hits:?}"));
        assert_eq!(hit["page"], chapter, "{hit}");
        assert_eq!(hit["headings"], json!([format!("Chapter {chapter}")]), "{hit}");
    }
    server.ask("Are you still there?");
}
