//! HTTP/3 and `millrace/1` on the real binary, judged by clients that were not written here or from the published
//! specification alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_tests::tools::python;
use millrace_tests::{Server, ServerBuilder};

fn secure(builder: ServerBuilder) -> (Server, String, PathBuf) {
    let server = builder.config("[tls]\nlisten = \"127.0.0.1:0\"\nself_signed = true").start();
    let address = server.ready["https"].as_str().expect("the ready line names the TLS port").to_owned();
    let certificate = server.data().join("tls/certificate.pem");
    (server, address, certificate)
}

fn run(script: &str, server: &Server, address: &str, certificate: &Path) {
    println!("{}", python(script, &[address, certificate.to_str().expect("a path"), &server.key]));
    assert_eq!(server.get("/healthz").status, 200, "the server goes on");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn aioquic_asks_over_http_3_and_moves_to_another_address() {
    let (server, address, certificate) = secure(Server::builder().workers(2));
    run("http3_client.py", &server, &address, &certificate);
}

#[test]
fn every_rule_of_http_3_and_quic_that_a_client_breaks_has_its_code() {
    let (server, address, certificate) = secure(Server::builder());
    run("http3_abuse.py", &server, &address, &certificate);
}

#[test]
fn a_client_of_the_native_protocol_can_be_written_from_its_specification() {
    let (server, address, certificate) = secure(Server::builder().workers(2));
    run("native_client.py", &server, &address, &certificate);
}

#[test]
fn the_tls_port_tells_of_http_3_and_the_open_port_does_not() {
    let (server, address, certificate) = secure(Server::builder());
    let port = address.rsplit(':').next().expect("a port");
    for version in ["--http1.1", "--http2"] {
        let output = Command::new("curl")
            .args(["--silent", "--head", version, "--cacert"])
            .arg(&certificate)
            .arg(format!("https://{address}/healthz"))
            .output()
            .expect("curl runs");
        let head = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(head.contains(&format!("alt-svc: h3=\":{port}\"; ma=86400")), "{version}: {head}");
    }
    assert_eq!(server.get("/healthz").header("alt-svc"), None);
}

#[test]
fn without_quic_nothing_listens_on_udp_and_nothing_is_said_of_it() {
    let config = "[tls]\nlisten = \"127.0.0.1:0\"\nself_signed = true\nquic = false";
    let server = Server::builder().config(config).start();
    let address = server.ready["https"].as_str().expect("an address").to_owned();
    std::net::UdpSocket::bind(&address).expect("the UDP port is free");
}

#[test]
fn no_handshake_is_refused_while_the_program_is_replaced() {
    let (server, address, certificate) = secure(Server::builder().workers(2));
    let certificate = certificate.to_str().expect("a path");
    println!("{}", python("http3_handover.py", &[&address, certificate, &server.pid().to_string(), "3"]));
    assert_eq!(server.get("/healthz").status, 200, "the server goes on");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn chromium_chats_over_http_3() {
    let (server, address, certificate) = secure(Server::builder().workers(2));
    run("chromium_http3.py", &server, &address, &certificate);
}
