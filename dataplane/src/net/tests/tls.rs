//! Connections under TLS, with a client that trusts the server's certificate alone.

use super::*;
use crate::net::tls::{Tls, TlsFiles};

/// The same with TLS: the server, and a client configuration that trusts it alone.
fn on_every_backend_with_tls(limits: Limits, test: impl Fn(&Server, &Arc<rustls::ClientConfig>)) {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let files = TlsFiles { certificate, key, client_ca: None, client_required: false };
    let tls = Arc::new(Tls::open(files).expect("they fit"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Arc::new(client);
    let best = reactor::probe(Preference::Auto).expect("a back end").backend;
    for backend in [Backend::Epoll, best] {
        println!("on {backend}");
        test(&Server::start_with(backend, limits, Some(tls.clone())), &client);
    }
}

#[test]
fn tls_carries_requests_of_every_size_and_tickets_resume() {
    on_every_backend_with_tls(Limits::default(), |server, config| {
        for turn in 0..3 {
            let name = "localhost".try_into().expect("a name");
            let connection = rustls::ClientConnection::new(config.clone(), name).expect("a client");
            let socket = TcpStream::connect(server.address).expect("connect");
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            let mut stream = rustls::StreamOwned::new(connection, socket);
            for length in [0, 1, 999, 1_000] {
                let body = "b".repeat(length);
                let request = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
                // In two portions, so that records end inside the head.
                let (first, second) = request.split_at(20);
                stream.write_all(first.as_bytes()).expect("sent");
                stream.write_all(second.as_bytes()).expect("sent");
                let mut answer = Vec::new();
                while !answer.ends_with(body.as_bytes()) || !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut part = [0; 700];
                    let count = stream.read(&mut part).expect("an answer");
                    assert!(count > 0, "closed early");
                    answer.extend_from_slice(&part[..count]);
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            }
            let resumed = stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            assert!(resumed || turn == 0, "only the first may have to greet in full");
        }
    });
}

#[test]
fn a_client_that_never_finishes_its_greeting_is_cut() {
    on_every_backend_with_tls(quick(), |server, _| {
        let mut silent = server.connect();
        silent.assert_closed();
        let mut slow = server.connect();
        slow.send([0x16, 3, 1]);
        slow.assert_closed();
        let mut noise = server.connect();
        noise.send([0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]);
        while noise.more() > 0 {}
    });
}
