//! The store from outside: what it promises, and what it says when it cannot keep it.

mod archiving;
mod backups;
mod common;
mod corpora;
mod crash;
mod forgetting;
mod full;
mod opening;
mod queues;
mod recall;
mod rotating;
mod sealing;
mod sessions;
mod spaces;
mod statements;
mod upgrading;
