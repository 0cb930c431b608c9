//! What claims change of what is known: the rule of contradiction.
//!
//! - Said again: nothing changes.
//! - A relation that holds with one thing at a time (`lives_in`): what holds when the new thing begins ends there, and
//!   the new thing ends where the next one that is known begins. So the order in which things are told does not matter.
//! - A relation with an opposite (`likes`, `dislikes`): the opposite with the same object ends.
//! - "No longer": what is open with the same object ends.

use std::collections::BTreeSet;

use millrace_proto::statement::{MessageId, Statement, normal};

use super::{Claim, Relation};

/// What has to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Statements that are new or have got an end.
    pub statements: Vec<Statement>,
    /// How many of them are new.
    pub added: usize,
    /// How many were known before and have got an end.
    pub ended: usize,
}

/// The subjects and relations whose statements have to be known to settle some claims.
pub fn subjects(claims: &[Claim]) -> BTreeSet<(String, &'static str)> {
    let asked = |claim: &Claim| {
        let words = [Some(claim.relation.word), claim.relation.opposite];
        let subject = normal(&claim.subject);
        words.into_iter().flatten().map(move |word| (subject.clone(), word))
    };
    claims.iter().flat_map(asked).collect()
}

/// Settles claims, in their order, with all statements that are `known` of their [`subjects`].
pub fn settle(claims: &[Claim], known: Vec<Statement>, now_ms: u64) -> Settled {
    let mut book = Book { entries: known.into_iter().map(|known| (known, State::Known)).collect(), now_ms };
    claims.iter().for_each(|claim| book.settle(claim));
    let count = |state: State| book.entries.iter().filter(|(_, found)| *found == state).count();
    let (added, ended) = (count(State::New), count(State::Ended));
    let changed = book.entries.into_iter().filter(|(_, state)| *state != State::Known);
    Settled { statements: changed.map(|(statement, _)| statement).collect(), added, ended }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Known,
    Ended,
    New,
}

struct Book {
    entries: Vec<(Statement, State)>,
    now_ms: u64,
}

fn open_at(statement: &Statement, at_ms: u64) -> bool {
    statement.valid_to_ms.is_none_or(|end| end > at_ms)
}

impl Book {
    fn settle(&mut self, claim: &Claim) {
        let since_ms = claim.since_ms;
        let mut new = Statement {
            subject: claim.subject.clone(),
            relation: claim.relation.word.to_owned(),
            object: claim.object.clone(),
            valid_from_ms: since_ms,
            valid_to_ms: None,
            recorded_ms: self.now_ms,
            ended_ms: None,
            source: claim.source,
            ended_by: None,
        };
        if claim.ended {
            return self.end(since_ms, claim.source, |known| known.valid_to_ms.is_none() && known.says_the_same(&new));
        }
        let again = |known: &Statement| {
            let began = !claim.relation.single || known.valid_from_ms <= since_ms;
            began && open_at(known, since_ms) && known.says_the_same(&new)
        };
        if self.entries.iter().any(|(known, _)| again(known)) {
            return;
        }
        let subject = normal(&claim.subject);
        let of = |known: &Statement, relation: &Relation| {
            known.relation == relation.word && normal(&known.subject) == subject
        };
        if claim.relation.single {
            let same = self.entries.iter().map(|(known, _)| known).filter(|known| of(known, claim.relation));
            let next = same.filter(|known| known.valid_from_ms > since_ms).min_by_key(|known| known.valid_from_ms);
            if let Some(next) = next {
                let (end, by) = (next.valid_from_ms, next.source);
                close(&mut new, end, self.now_ms, by);
            }
            self.end(since_ms, claim.source, |known| {
                of(known, claim.relation) && known.valid_from_ms <= since_ms && open_at(known, since_ms)
            });
        }
        if let Some(opposite) = claim.relation.opposite.and_then(Relation::of) {
            let object = normal(&claim.object);
            self.end(since_ms, claim.source, |known| {
                of(known, opposite) && known.valid_to_ms.is_none() && normal(&known.object) == object
            });
        }
        self.entries.push((new, State::New));
    }

    fn end(&mut self, at_ms: u64, by: MessageId, which: impl Fn(&Statement) -> bool) {
        for (known, state) in &mut self.entries {
            if which(known) {
                close(known, at_ms.max(known.valid_from_ms), self.now_ms, by);
                if *state == State::Known {
                    *state = State::Ended;
                }
            }
        }
    }
}

fn close(statement: &mut Statement, at_ms: u64, now_ms: u64, by: MessageId) {
    statement.valid_to_ms = Some(at_ms);
    statement.ended_ms = Some(now_ms);
    statement.ended_by = Some(by);
}
