//! Answers become claims, claims change what is known.

use millrace_proto::id::ConversationId;
use millrace_proto::statement::{SPEAKER, Statement};
use serde_json::json;

use super::*;

const NOW: u64 = 1_000_000;

fn id(seq: u64) -> MessageId {
    (ConversationId([5; 16]), seq)
}

fn claim(relation: &str, object: &str, since_ms: u64) -> Claim {
    let relation = Relation::of(relation).expect("a known relation");
    Claim { subject: SPEAKER.into(), relation, object: object.into(), since_ms, ended: false, source: id(since_ms) }
}

fn no_longer(relation: &str, object: &str, since_ms: u64) -> Claim {
    Claim { ended: true, ..claim(relation, object, since_ms) }
}

/// Settles claims one round after the other, each with what the rounds before left.
fn book(rounds: &[Claim]) -> Vec<Statement> {
    let mut known: Vec<Statement> = Vec::new();
    for (at, claim) in rounds.iter().enumerate() {
        let settled = settle(std::slice::from_ref(claim), known.clone(), NOW + at as u64);
        for changed in settled.statements {
            let same =
                |other: &&mut Statement| other.says_the_same(&changed) && other.valid_from_ms == changed.valid_from_ms;
            match known.iter_mut().find(same) {
                Some(other) => *other = changed,
                None => known.push(changed),
            }
        }
    }
    known
}

fn objects(known: &[Statement], at_ms: u64) -> Vec<&str> {
    let mut objects: Vec<&str> = known.iter().filter(|s| s.holds(at_ms, u64::MAX)).map(|s| s.object.as_str()).collect();
    objects.sort_unstable();
    objects
}

#[test]
fn a_new_home_ends_the_one_before_and_both_keep_their_messages() {
    let known = book(&[claim("lives_in", "Paris", 100), claim("lives_in", "Rome", 200)]);
    assert_eq!(
        (objects(&known, 50), objects(&known, 150), objects(&known, 250)),
        (vec![], vec!["Paris"], vec!["Rome"])
    );
    assert_eq!((known[0].source, known[0].ended_by, known[0].valid_to_ms), (id(100), Some(id(200)), Some(200)));
    assert_eq!(known[0].ended_ms, Some(NOW + 1));
    // As far as was known before the second round, it was still Paris.
    assert!(known[0].holds(250, NOW) && !known[1].holds(250, NOW));
}

#[test]
fn the_order_in_which_things_are_told_does_not_matter() {
    let (a, b, c) = (claim("lives_in", "Oslo", 100), claim("lives_in", "Paris", 200), claim("lives_in", "Rome", 300));
    let orders = [[&a, &b, &c], [&a, &c, &b], [&b, &a, &c], [&b, &c, &a], [&c, &a, &b], [&c, &b, &a]];
    for order in orders {
        let known = book(&order.map(Clone::clone));
        let seen: Vec<_> = [50, 150, 250, 350].iter().map(|at| objects(&known, *at)).collect();
        assert_eq!(seen, [vec![], vec!["Oslo"], vec!["Paris"], vec!["Rome"]], "{order:?}");
    }
}

#[test]
fn what_is_said_again_changes_nothing() {
    let first = [claim("lives_in", "Paris", 100), claim("likes", "green tea", 100)];
    let known = book(&first);
    for again in [claim("lives_in", " paris", 300), claim("likes", "Green  Tea", 50)] {
        assert_eq!(settle(&[again], known.clone(), NOW), Settled::default());
    }
}

#[test]
fn one_may_like_much_and_an_opposite_ends_only_its_own_object() {
    let known = book(&[
        claim("likes", "tea", 100),
        claim("likes", "chess", 100),
        claim("dislikes", "tea", 200),
        no_longer("likes", "chess", 300),
        no_longer("owns", "a boat", 300),
    ]);
    assert_eq!(objects(&known, 150), ["chess", "tea"]);
    assert_eq!(objects(&known, 250), ["chess", "tea"], "the tea is disliked now");
    assert!(known.iter().any(|s| s.relation == "dislikes" && s.object == "tea" && s.valid_to_ms.is_none()));
    assert!(known.iter().any(|s| s.relation == "likes" && s.object == "tea" && s.valid_to_ms == Some(200)));
    assert_eq!(objects(&known, 350), ["tea"]);
}

#[test]
fn claims_of_one_answer_see_each_other() {
    let settled = settle(&[claim("lives_in", "Paris", 100), claim("lives_in", "Rome", 200)], Vec::new(), NOW);
    assert_eq!((settled.added, settled.ended), (2, 0));
    assert_eq!(settled.statements[0].valid_to_ms, Some(200));
    let asked = subjects(&[claim("likes", "tea", 1)]);
    assert_eq!(asked.into_iter().map(|(_, word)| word).collect::<Vec<_>>(), ["dislikes", "likes"]);
}

fn said(text: &str, at_ms: u64) -> Said {
    Said { id: id(at_ms), text: text.into(), at_ms }
}

fn fact(message: usize, relation: &str, object: &str, since: Option<&str>) -> serde_json::Value {
    json!({
        "message": message, "subject": "user", "relation": relation, "object": object, "since": since, "ended": false,
    })
}

#[test]
fn an_answer_becomes_claims_of_its_messages() {
    let said = [said("I live in Paris", 5_000), said("since May 2024 I work at Acme", 9_000)];
    let answer = json!({"facts": [
        fact(1, "lives_in", " Paris ", None),
        fact(2, "works_at", "Acme", Some("2024-05")),
        fact(2, "works_at", "Acme", Some("2024-99")),
        fact(1, "likes", "  ", None),
        fact(1, "likes", "User", None),
    ]});
    let found = claims(&answer.to_string(), &said).unwrap();
    let seen: Vec<_> = found.iter().map(|claim| (claim.object.as_str(), claim.since_ms, claim.source)).collect();
    let may = 1_714_521_600_000;
    assert_eq!(seen, [("Paris", 5_000, id(5_000)), ("Acme", may, id(9_000)), ("Acme", 9_000, id(9_000))]);
}

#[test]
fn an_answer_that_departs_from_its_schema_is_an_error_with_the_place() {
    let said = [said("hello", 1)];
    for (wrong, why) in [
        (r#"{"facts": [{"message": 1, "subj"#.to_owned(), "EOF"),
        (json!({"facts": [fact(2, "likes", "tea", None)]}).to_string(), "no message 2"),
        (json!({"facts": [fact(0, "likes", "tea", None)]}).to_string(), "no message 0"),
        (json!({"facts": [fact(1, "eats", "tea", None)]}).to_string(), "no relation"),
        (json!({"facts": [{"message": 1}]}).to_string(), "missing field"),
    ] {
        let error = claims(&wrong, &said).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(claims(r#"{"facts": []}"#, &said).unwrap(), []);
}

#[test]
fn the_question_numbers_the_messages_and_cuts_what_is_pasted() {
    let [rules, numbered] = questions(&[said("I live\nin Paris", 0), said(&"é".repeat(9_000), 86_400_000)]);
    assert!(rules.content.contains("lives_in: home") && rules.content.contains("\"user\""));
    assert!(numbered.content.starts_with("1. [1970-01-01] I live in Paris\n2. [1970-01-02] é"), "{}", numbered.content);
    assert!(numbered.content.len() < 2_000);
    let schema = schema(3);
    assert_eq!(schema["properties"]["facts"]["items"]["properties"]["message"]["enum"], json!([1, 2, 3]));
    // Every relation that is named as an opposite exists and names this one.
    for relation in RELATIONS {
        assert!(relation.opposite.is_none_or(|word| Relation::of(word).unwrap().opposite == Some(relation.word)));
    }
}
