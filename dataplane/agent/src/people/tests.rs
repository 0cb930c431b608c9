//! Links are made by both sides only, and guessing does not pay.

use super::*;

const T: TenantId = TenantId(1);
const NOW: u64 = 1_767_225_600_000;

fn user(name: &str) -> UserId {
    UserId::of(T, name)
}

/// Reads empty pages until nothing is missing.
fn ready(people: &mut People, tenant: TenantId, user: UserId) {
    while let Some(page) = people.missing_for_user(tenant, user) {
        people.fill(page, None).unwrap();
    }
}

fn with(names: &[&str]) -> People {
    let mut people = People::default();
    for name in names {
        ready(&mut people, T, user(name));
    }
    people
}

#[test]
fn a_code_shown_here_and_typed_there_makes_one_person_until_it_is_undone() {
    let mut people = with(&["a", "b"]);
    let code = people.show_code(T, user("a"), [1, 2, 3, 4, 5, 6, 7, 8], NOW).unwrap();
    assert_eq!(code.len(), CODE_CHARS);
    assert_eq!(people.owner_of(T, &code), Some(user("a")));
    let typed = format!(" {}-{} ", code[..4].to_lowercase(), &code[4..]);
    let change = people.redeem(T, user("b"), &typed, NOW + 1).unwrap();
    assert_eq!(people.person(T, user("b")), user("a"));
    assert_eq!(people.person(T, user("a")), user("a"));

    // A restart reads the page that was written.
    let mut again = with(&["a"]);
    assert_eq!(again.missing_for_user(T, user("b")), Some(change.page));
    again.fill(change.page, Some(&change.bytes)).unwrap();
    ready(&mut again, T, user("b"));
    assert_eq!(again.person(T, user("b")), user("a"));

    again.unlink(T, user("b")).unwrap();
    assert_eq!(again.person(T, user("b")), user("b"));
    assert_eq!(again.unlink(T, user("b")), Err(Refused::NotLinked));
}

#[test]
fn a_code_is_good_once_for_ten_minutes_and_in_its_tenant_only() {
    let mut people = with(&["a", "b", "c"]);
    let code = people.show_code(T, user("a"), [9; 8], NOW).unwrap();
    people.redeem(T, user("b"), &code, NOW).unwrap();
    assert_eq!(people.redeem(T, user("c"), &code, NOW), Err(Refused::WrongCode), "used");
    let code = people.show_code(T, user("a"), [10; 8], NOW).unwrap();
    assert_eq!(people.redeem(T, user("c"), &code, NOW + CODE_TTL_MS), Err(Refused::WrongCode), "too old");
    let code = people.show_code(T, user("a"), [11; 8], NOW + CODE_TTL_MS).unwrap();
    let stranger = UserId::of(TenantId(2), "c");
    ready(&mut people, TenantId(2), stranger);
    assert_eq!(people.redeem(TenantId(2), stranger, &code, NOW + CODE_TTL_MS), Err(Refused::WrongCode), "tenant");
    assert_eq!(people.redeem(T, user("a"), &code, NOW + CODE_TTL_MS), Err(Refused::OwnCode));
    people.redeem(T, user("c"), &code, NOW + CODE_TTL_MS).unwrap();
}

#[test]
fn asking_and_guessing_are_rationed() {
    let mut people = with(&["a", "b", "c"]);
    for byte in 0..3 {
        people.show_code(T, user("a"), [byte; 8], NOW).unwrap();
    }
    assert!(matches!(people.show_code(T, user("a"), [4; 8], NOW), Err(Refused::TooOften(_))));
    let later = NOW + 600_001;
    let code = people.show_code(T, user("a"), [5; 8], later).unwrap();
    for _ in 0..5 {
        assert_eq!(people.redeem(T, user("b"), "AAAAAAAA", later), Err(Refused::WrongCode));
    }
    assert!(matches!(people.redeem(T, user("b"), &code, later), Err(Refused::TooOften(_))), "even a right one");
    people.redeem(T, user("c"), &code, later).unwrap();
    // Many users that guess together are stopped by the bound of their tenant.
    let refused = (0..200).filter(|n| {
        let guesser = user(&format!("guesser {n}"));
        matches!(people.redeem(T, guesser, "BBBBBBBB", later), Err(Refused::TooOften(_)))
    });
    assert!(refused.count() >= 100);
}

#[test]
fn links_never_make_a_circle_and_lead_to_one_person() {
    let mut people = with(&["a", "b", "c"]);
    let code = people.show_code(T, user("a"), [1; 8], NOW).unwrap();
    people.redeem(T, user("b"), &code, NOW).unwrap();
    let back = people.show_code(T, user("b"), [2; 8], NOW).unwrap();
    assert_eq!(people.redeem(T, user("a"), &back, NOW), Err(Refused::LinkedAlready));
    let code = people.show_code(T, user("b"), [3; 8], NOW).unwrap();
    people.redeem(T, user("c"), &code, NOW).unwrap();
    assert_eq!(people.person(T, user("c")), user("a"), "a link leads to the person, not to one of their channels");
    // The person of others may link on; those who speak through it follow.
    let mut people = with(&["a", "b", "c"]);
    let code = people.show_code(T, user("a"), [1; 8], NOW).unwrap();
    people.redeem(T, user("b"), &code, NOW).unwrap();
    let code = people.show_code(T, user("c"), [4; 8], NOW).unwrap();
    people.redeem(T, user("a"), &code, NOW).unwrap();
    assert_eq!(people.person(T, user("b")), user("c"));
}

#[test]
fn chats_keep_their_settings() {
    let mut people = People::default();
    let page = people.missing_for_chat(T, "telegram/bot/-100").unwrap();
    people.fill(page, None).unwrap();
    assert_eq!(people.listen(T, "telegram/bot/-100"), Listen::Mentions);
    let change = people.set_listen(T, "telegram/bot/-100", Listen::All).unwrap();
    let mut again = People::default();
    again.fill(change.page, Some(&change.bytes)).unwrap();
    assert_eq!(again.listen(T, "telegram/bot/-100"), Listen::All);
    assert_eq!(again.listen(TenantId(2), "telegram/bot/-100"), Listen::Mentions);
    let change = again.set_listen(T, "telegram/bot/-100", Listen::Mentions).unwrap();
    assert_eq!(change.bytes, [PAGE_VERSION], "the usual setting takes no room");
}

#[test]
fn random_links_keep_their_promises() {
    for seed in 1..=200u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = move |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut people = with(&names);
        let mut now = NOW;
        let mut codes: Vec<String> = Vec::new();
        for step in 0..60u8 {
            now += 700_000;
            let who = user(names[draw(names.len())]);
            match draw(3) {
                0 => codes.extend(people.show_code(T, who, [step, draw(256) as u8, 3, 4, 5, 6, 7, 8], now)),
                1 => {
                    let before: Vec<UserId> = names.iter().map(|name| people.person(T, user(name))).collect();
                    let code = codes.last().cloned().unwrap_or_default();
                    if people.redeem(T, who, &code, now.saturating_sub(700_000)).is_err() {
                        let after: Vec<UserId> = names.iter().map(|name| people.person(T, user(name))).collect();
                        assert_eq!(before, after, "seed {seed}: a refusal changes nobody");
                    }
                }
                _ => drop(people.unlink(T, who)),
            }
            for name in names {
                let person = people.person(T, user(name));
                assert_eq!(people.person(T, person), person, "seed {seed}: a person is their own");
            }
        }
    }
}

#[test]
fn damaged_pages_are_refused() {
    let page = PageKey { tenant: T, table: Table::Links, slot: 0 };
    for bytes in [&[][..], &[2], &[1, 0], &[1; 34], &[1; 32]] {
        assert!(People::default().fill(page, Some(bytes)).is_err(), "{bytes:?}");
    }
    assert!(People::default().fill(page, Some(&[1])).is_ok());
    assert_eq!(page.name(), "people/links/1/00");
}
