//! TLS and HTTP/2 on the real binary, judged by clients that were not written here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_tests::server::chat;
use millrace_tests::tools::{printable, python};
use millrace_tests::{Server, eventually};

/// A server with a TLS port and a certificate it made itself.
fn self_signed() -> (Server, String, PathBuf) {
    let server = Server::builder().config("[tls]\nlisten = \"127.0.0.1:0\"\nself_signed = true").start();
    let address = https(&server);
    let certificate = server.data().join("tls/certificate.pem");
    (server, address, certificate)
}

fn https(server: &Server) -> String {
    server.ready["https"].as_str().expect("the ready line names the TLS port").to_owned()
}

/// Runs curl; returns whether it succeeded, and `HTTP-VERSION STATUS` with what it printed before.
fn curl(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_version} %{http_code}"])
        .args(arguments)
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, last) = text.rsplit_once('\n').unwrap_or((&text, ""));
    (output.status.success(), last.to_owned(), body.to_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// Runs `openssl` with this input; returns everything it printed.
fn openssl(arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn curl_speaks_both_versions_of_tls_and_of_http() {
    let (server, address, certificate) = self_signed();
    let trust = ["--cacert", certificate.to_str().expect("a path")];
    let url = format!("https://{address}");
    let key = format!("Authorization: Bearer {}", server.key);
    for tls in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let curl = |rest: &[&str]| curl(&[&trust[..], &tls, &[http], rest].concat());
            // Two on one connection.
            let (ok, last, text) = curl(&[&format!("{url}/healthz"), &format!("{url}/readyz")]);
            assert!(ok && last == format!("{version} 200"), "{tls:?} {http}: {last} {text}");
            let (ok, last, _) = curl(&[&format!("{url}/v1/models")]);
            assert!(ok && last == format!("{version} 401"), "{last}");
            let mut body = chat("Say hello.", 6);
            body["stream"] = true.into();
            let path = format!("{url}/v1/chat/completions");
            let (ok, last, text) = curl(&["-N", "-H", &key, "-d", &body.to_string(), &path]);
            assert!(ok && last == format!("{version} 200"), "{last} {text}");
            assert!(text.contains("data: {") && text.contains("data: [DONE]"), "{text}");
        }
    }
    let (ok, _, text) = curl(&["--tlsv1.0", "--tls-max", "1.1", trust[0], trust[1], &url]);
    assert!(!ok, "old versions are refused: {text}");
    let (ok, _, text) = curl(&[&url]);
    assert!(!ok && text.contains("certificate"), "nobody vouches for it: {text}");
}

#[test]
fn plain_http_on_the_tls_port_is_told_what_to_do() {
    let (_server, address, _) = self_signed();
    let (ok, last, text) = curl(&[&format!("http://{address}/healthz")]);
    assert!(ok && last == "1.1 400" && text.contains("https://"), "{last} {text}");
}

#[test]
fn a_session_resumes_on_every_reactor() {
    let (_server, address, _) = self_signed();
    let folder = tempfile::tempdir().expect("a folder");
    let connect = |file: &str, session: &str| {
        let command = format!(
            "printf 'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' \
             | openssl s_client -connect {address} -alpn http/1.1 -ign_eof {file} {session} 2>&1"
        );
        let output = Command::new("sh").args(["-c", &command]).current_dir(folder.path()).output().expect("sh runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = connect("-sess_out", "ticket");
    assert!(first.contains("New, TLSv1.3") && first.contains("HTTP/1.1 200"), "{first}");
    // The kernel spreads connections over the two reactors: eight in a row all on one is 1 in 128, and both
    // outcomes must hold.
    for _ in 0..8 {
        let again = connect("-sess_in", "ticket");
        assert!(again.contains("Reused, TLSv1.3") && again.contains("HTTP/1.1 200"), "{again}");
    }
}

/// An authority and certificates signed by it, made by openssl.
fn authority(folder: &Path) {
    let config = "[v3]\nsubjectAltName=IP:127.0.0.1\n";
    std::fs::write(folder.join("v3.cnf"), config).expect("written");
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-days", "30", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&ca[..], &curve].concat(), folder);
    for (name, subject) in [("one", "/CN=first"), ("two", "/CN=second"), ("client", "/CN=client")] {
        let (key, request, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        openssl(&[&["req", "-new", "-subj", subject, "-keyout", &key, "-out", &request][..], &curve].concat(), folder);
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(
            &[&sign[..], &["-days", "30", "-extfile", "v3.cnf", "-extensions", "v3", "-out", &out]].concat(),
            folder,
        );
        assert!(folder.join(&out).is_file(), "{out}");
    }
}

fn install(folder: &Path, name: &str) {
    for kind in ["pem", "key"] {
        std::fs::copy(folder.join(format!("{name}.{kind}")), folder.join(format!("used.{kind}"))).expect("copied");
    }
}

fn with_files(folder: &Path, more: &str) -> Server {
    let folder = folder.display();
    let config = format!(
        "[tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"{folder}/used.pem\"\nkey = \"{folder}/used.key\"\n{more}"
    );
    Server::builder().config(&config).start()
}

#[test]
fn a_renewed_certificate_is_taken_on_sighup_and_a_damaged_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    authority(folder.path());
    install(folder.path(), "one");
    let server = with_files(folder.path(), "");
    let address = https(&server);
    let shown = || openssl(&["s_client", "-connect", &address, "-alpn", "http/1.1"], folder.path());
    assert!(shown().contains("CN = first"), "{}", shown());
    install(folder.path(), "two");
    assert!(shown().contains("CN = first"), "nothing changes unasked");
    server.signal("HUP");
    let renewed = || shown().contains("CN = second").then_some(());
    eventually("the new certificate is served", Duration::from_secs(10), renewed);
    std::fs::write(folder.path().join("used.pem"), "damaged").expect("written");
    server.signal("HUP");
    let told = || server.log().contains("the certificate in use stays").then_some(());
    eventually("the damaged certificate is reported", Duration::from_secs(10), told);
    assert!(shown().contains("CN = second"));
}

#[test]
fn mutual_tls_refuses_clients_without_a_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    authority(folder.path());
    install(folder.path(), "one");
    let ca = folder.path().join("ca.pem");
    let server = with_files(folder.path(), &format!("client_ca = \"{}\"\n", ca.display()));
    let url = format!("https://{}/healthz", https(&server));
    let trust = ["--cacert", ca.to_str().expect("a path")];
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ok, last, text) =
        curl(&[trust[0], trust[1], "--cert", &path("client.pem"), "--key", &path("client.key"), &url]);
    assert!(ok && last == "2 200", "{last} {text}");
    let (ok, _, text) = curl(&[trust[0], trust[1], &url]);
    assert!(!ok, "no certificate, no answer: {text}");
}

#[test]
fn unusable_tls_settings_are_refused_with_the_next_step() {
    for (config, part) in [
        ("[tls]\nlisten = \"127.0.0.1:0\"", "tls.self_signed"),
        ("[tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"", "/nowhere.pem"),
        ("[tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"", "tls.listen"),
    ] {
        let (status, text) = Server::builder().config(config).refuse();
        assert!(!status.success() && text.contains(part), "{config}: {text}");
    }
}

#[test]
fn http2_without_tls_works_by_prior_knowledge() {
    let server = Server::start_default();
    let url = server.url();
    let key = format!("Authorization: Bearer {}", server.key);
    let h2c = |rest: &[&str]| curl(&[&["--http2-prior-knowledge"][..], rest].concat());
    let (ok, last, text) = h2c(&[&format!("{url}/healthz")]);
    assert!(ok && last == "2 200", "{last} {text}");
    let (ok, last, text) =
        h2c(&["-H", &key, "-d", &chat("Say hello.", 4).to_string(), &format!("{url}/v1/chat/completions")]);
    assert!(ok && last == "2 200" && text.contains("chat.completion"), "{last} {text}");
    let (ok, last, text) = h2c(&["-H", &key, "-d", "{", &format!("{url}/v1/chat/completions")]);
    assert!(ok && last == "2 400" && text.contains("next_step"), "{last} {text}");
    let (ok, last, _) = h2c(&["-I", &format!("{url}/healthz")]);
    assert!(ok && last == "2 200", "HEAD");
    let (ok, last, _) = h2c(&["-X", "PUT", &format!("{url}/v1/models")]);
    assert!(ok && last == "2 405");
}

#[test]
fn floods_and_malformed_frames_end_their_connection_only() {
    let server = Server::start_default();
    println!("{}", python("http2_abuse.py", &[&server.http.to_string(), &server.key]));
    assert_eq!(server.get("/healthz").status, 200, "the server goes on");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn the_sections_of_http_2_and_hpack_are_kept() {
    let server = Server::start_default();
    println!("{}", python("http2_cases.py", &[&server.http.to_string(), &server.key]));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn h2load_sees_no_failure() {
    let server = Server::start_default();
    let url = format!("{}/healthz", server.url());
    let output = Command::new("h2load").args(["-n", "4000", "-c", "8", "-m", "16", &url]).output();
    let output = output.expect("h2load runs: `make setup-test` installs it");
    let text = printable(&output).to_string();
    assert!(text.contains("4000 succeeded, 0 failed, 0 errored"), "{text}");
}
