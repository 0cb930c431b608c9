//! The chat page in a real browser: a key is typed, a message is sent, the reply grows on the page,
//! and after a reload the conversation is still there.

use millrace_tests::Server;
use millrace_tests::tools::python;

#[test]
fn browser_chats_streams_and_survives_a_reload() {
    let server = Server::start_default();
    println!("{}", python("browser.py", &[&server.url(), &server.key]));
    let sessions = server.get("/v1/sessions").text();
    assert!(sessions.contains("name"), "the page's session is on the server: {sessions}");
}
