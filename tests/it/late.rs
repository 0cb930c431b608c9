//! A server that was down for hours does not answer what nobody waits for any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_tests::platform::{Answer, telegram_sent};
use millrace_tests::{Platform, eventually};

use crate::channels::{outbox, tell_telegram, update, with_channels};

const REPLY_WITHIN: Duration = Duration::from_secs(120);
/// Sets the clock of one process, and leaves its timers alone.
const LATER: [&str; 4] = [
    "env",
    "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "FAKETIME_DONT_FAKE_MONOTONIC=1",
    "FAKETIME=+2h",
];

#[test]
fn what_is_hours_old_is_listed_and_not_sent() {
    let open = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&open);
    let telegram = Platform::start(move |_, earlier| match works.load(Ordering::SeqCst) {
        true => Answer::new(200, telegram_sent(earlier)),
        false => Answer::new(503, r#"{"ok":false,"error_code":503,"description":"Service Unavailable"}"#),
    });
    let webhook = Platform::webhook();
    let mut server = with_channels(&telegram, &webhook).env("RETRY_POLICY", "60s,60s,60s").start();
    // A reply whose platform was down, and a question whose process died before it was answered.
    assert_eq!(tell_telegram(&server, &update(1, 4711, "Hello, who are you?")).expect("an answer").status, 200);
    telegram.wait("a try", 1, REPLY_WITHIN, |one| one.path.ends_with("/sendMessage"));
    eventually("the failure is written down", REPLY_WITHIN, || {
        outbox(&server, "pending").iter().any(|job| job["attempt"] == 1).then_some(())
    });
    assert_eq!(tell_telegram(&server, &update(2, 4712, "And who am I?")).expect("an answer").status, 200);
    server.kill();
    let tries = telegram.seen().len();

    open.store(true, Ordering::SeqCst);
    server.reconfigure(|builder| builder.launcher(&LATER));
    server.restart();
    let dead = eventually("both are given up", REPLY_WITHIN, || {
        let dead = outbox(&server, "dead");
        (dead.len() == 2).then_some(dead)
    });
    for (job, why) in [("4711", "expired after 1 attempts"), ("4712", "it waited longer than 3600 s")] {
        let job = dead.iter().find(|one| one["chat"] == job).unwrap_or_else(|| panic!("{job} is listed: {dead:#?}"));
        assert!(job["detail"].as_str().is_some_and(|detail| detail.contains(why)), "{job:#}");
    }
    assert_eq!(telegram.seen().len(), tries, "nothing old is sent: {:#?}", telegram.seen());

    assert_eq!(tell_telegram(&server, &update(3, 4711, "Are you back?")).expect("an answer").status, 200);
    telegram.wait("the answer to what is new", tries + 1, REPLY_WITHIN, |one| one.path.ends_with("/sendMessage"));
}
