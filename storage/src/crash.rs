//! Points at which a test lets the process die: before and after each durable step.
//!
//! They are part of every build, because they cost one relaxed load of a flag that is never set: no second
//! build is needed to prove that what is sold survives. `MILLRACE_CRASH_POINT=NAME:N` sets the flag at the
//! start, and the process aborts when it comes to that point for the N-th time. Whoever sets environment
//! variables of the process could end it anyway.

use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable.
pub const VARIABLE: &str = "MILLRACE_CRASH_POINT";

/// Every point, in the order in which a message comes to them. A test visits each of them.
pub const POINTS: [&str; 14] = [
    "accept.before_commit",
    "commit.before_write",
    "commit.after_write",
    "accept.before_ack",
    "draft.before_row",
    "draft.before_send",
    "draft.after_send",
    "finish.before_commit",
    "finish.after_commit",
    "delivery.before_sending",
    "delivery.before_call",
    "delivery.after_call",
    "delivery.before_receipt",
    "delivery.after_receipt",
];

static ARMED: AtomicBool = AtomicBool::new(false);

/// Reads `NAME:N` and arms the point. The error says what is wrong.
pub fn arm(text: &str) -> Result<(), String> {
    let (name, pass) = text.split_once(':').ok_or_else(|| format!("{VARIABLE}={text:?} is not NAME:N"))?;
    if !POINTS.contains(&name) {
        return Err(format!("{VARIABLE} names no point; known: {}", POINTS.join(", ")));
    }
    let pass = pass.parse::<u32>().ok().filter(|pass| (1..=1_000_000).contains(pass));
    let pass = pass.ok_or_else(|| format!("{VARIABLE}={text:?} has no number from 1 to 1000000"))?;
    let actions = if pass == 1 { "return".to_owned() } else { format!("{}*off->return", pass - 1) };
    fail::cfg(name, &actions)?;
    ARMED.store(true, Ordering::Release);
    Ok(())
}

/// The process ends here when this point is armed and its time has come.
#[inline]
pub fn point(name: &'static str) {
    if ARMED.load(Ordering::Relaxed) {
        reached(name);
    }
}

#[cold]
fn reached(name: &'static str) {
    debug_assert!(POINTS.contains(&name), "{name} is not on the list");
    if fail::eval(name, |_| ()).is_some() {
        // No destructor, no flush: what is not on the disk is gone.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_its_pass() {
        for (text, why) in [("", "NAME:N"), ("nowhere:1", "known"), ("commit.before_write:0", "number")] {
            let error = arm(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn an_unarmed_point_does_nothing() {
        POINTS.into_iter().for_each(point);
    }
}
