//! Clients that are slow on purpose, by a tool that was made for it.

use std::process::Command;
use std::time::{Duration, Instant};

use millrace_tests::Server;
use millrace_tests::tools::printable;

/// Connections of each attack; the server takes 2,000 in all.
const ATTACKERS: &str = "400";

fn attack(server: &Server, words: &[&str]) -> String {
    let url = format!("{}/v1/chat/completions", server.url());
    let output = Command::new("slowhttptest")
        .args(["-c", ATTACKERS, "-r", "400", "-l", "20", "-p", "3", "-u", &url])
        .args(words)
        .output()
        .expect("slowhttptest runs: `make setup-test` installs it");
    printable(&output)
}

#[test]
fn slow_heads_bodies_and_readers_hold_nobody_up() {
    let server = Server::builder().config("[limits]\nconnections_max = 2000\nrequests_per_minute = 100000").start();
    // Slow headers (slowloris), slow bodies, and answers that are read byte by byte.
    for (name, words) in [
        ("slow headers", vec!["-H", "-i", "5"]),
        ("slow bodies", vec!["-B", "-i", "5", "-s", "8192"]),
        ("slow reading", vec!["-X", "-w", "1", "-y", "2", "-n", "5", "-z", "1", "-k", "3"]),
    ] {
        let report = std::thread::scope(|scope| {
            let attack = scope.spawn(|| attack(&server, &words));
            let mut worst = Duration::ZERO;
            let mut asked = 0;
            while !attack.is_finished() {
                let began = Instant::now();
                assert_eq!(server.get("/v1/models").status, 200, "{name}");
                worst = worst.max(began.elapsed());
                asked += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(asked > 10, "{name}: only {asked} requests while it was attacked");
            assert!(worst < Duration::from_secs(3), "{name}: an honest request took {worst:?}");
            println!("{name}: {asked} honest requests, the slowest took {worst:?}");
            attack.join().expect("the attack ends")
        });
        assert!(!report.contains("service available:   NO"), "{name}: {report}");
    }
    server.ask("Are you well?");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
