//! `millrace bench memory`: how many of the turns that answer a question recall brings.
//!
//! Reads the LoCoMo format (Maharana et al., ACL 2024; the data is not shipped): a conversation, or a list of them,
//! with `session_N` (turns of `speaker`, `dia_id`, `text`, perhaps `blip_caption`), `session_N_date_time`, and `qa`
//! (`question`, `evidence` = `dia_id`s, `category`). Each conversation becomes one user of a fresh store; every turn is
//! remembered as `Speaker: text [shared caption]`, and every question is asked at the end of the conversation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Instant;

use clap::Args;
use millrace_inference::encoder::Encoder;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_storage::{Batch, MemoryWrite, RecallQuery, Recalled, Store, StoreOptions};
use serde_json::{Value, json};

use super::SettingFlags;
use super::print::{note, out, table};
use crate::config;
use crate::models;
use crate::trouble::Trouble;

/// Where recall is cut off for the figures.
const CUTS: [usize; 4] = [5, 10, 20, 50];
/// Texts that are embedded at a time.
const EMBED_BATCH: usize = 64;
const MINUTE_MS: u64 = 60_000;
/// Between the sessions of a conversation whose dates cannot be read.
const SESSION_GAP_MS: u64 = 7 * 24 * 60 * MINUTE_MS;

#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Conversations with questions, in the LoCoMo format
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    locomo: Vec<PathBuf>,
    /// Leave out memories below this relevance (0 to 1)
    #[arg(long, default_value_t = 0.0)]
    relevance_min: f32,
    /// Print a line of JSON for each conversation and category
    #[arg(long)]
    json: bool,
}

#[derive(Debug, PartialEq)]
struct Turn {
    /// Place in the whole file, so that neighbours across a session's end are not neighbours.
    session: u64,
    seq: u64,
    id: String,
    text: String,
    at_ms: u64,
}

#[derive(Debug, PartialEq)]
struct Question {
    text: String,
    evidence: BTreeSet<String>,
    category: String,
}

#[derive(Debug, PartialEq)]
struct Conversation {
    name: String,
    turns: Vec<Turn>,
    questions: Vec<Question>,
}

pub(super) fn run(args: &MemoryArgs) -> Result<ExitCode, Trouble> {
    let mut conversations = Vec::new();
    for file in &args.locomo {
        conversations.extend(read(file)?);
    }
    let config = config::load(&args.settings.flags)?.config;
    let encoder = match models::encoder(&config)? {
        Some(found) => Some(Encoder::load(&found.path, config.engine.embedding_precision()).map_err(|error| {
            Trouble::new("the embedding model cannot be loaded", error.to_string(), "`millrace doctor` looks at it")
        })?),
        None => {
            note("no embedding model: recall is by words and things only");
            None
        }
    };
    let folder = Scratch::new()?;
    let failed = |error: &dyn std::error::Error| {
        Trouble::new("memory cannot be measured", error.to_string(), "look at the free space of the temporary folder")
    };
    let store = Store::open(&StoreOptions::new(&folder.0)).map_err(|error| failed(&error))?;
    let mut scores = Scores::default();
    for conversation in &conversations {
        note(&format!(
            "{}: {} turns, {} questions",
            conversation.name,
            conversation.turns.len(),
            conversation.questions.len()
        ));
        measure(&store, encoder.as_ref(), conversation, args.relevance_min, &mut scores)
            .map_err(|error| failed(&*error))?;
    }
    store.shutdown();
    out(&if args.json { scores.lines() } else { scores.table() });
    Ok(ExitCode::SUCCESS)
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Trouble> {
        let path = std::env::temp_dir().join(format!("millrace-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| {
            Trouble::new(
                format!("{} cannot be made", path.display()),
                error.to_string(),
                "set TMPDIR to another folder",
            )
        })?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn embed(encoder: Option<&Encoder>, texts: &[&str]) -> Vec<Vec<f32>> {
    match encoder {
        Some(encoder) => texts.chunks(EMBED_BATCH).flat_map(|some| encoder.embed(some)).collect(),
        None => vec![Vec::new(); texts.len()],
    }
}

fn measure(
    store: &Store,
    encoder: Option<&Encoder>,
    conversation: &Conversation,
    relevance_min: f32,
    scores: &mut Scores,
) -> Result<(), Box<dyn std::error::Error>> {
    let tenant = TenantId::DEFAULT;
    let user = UserId::of(tenant, &conversation.name);
    let session_id = |session: u64| ConversationId::of(tenant, &format!("{} {session}", conversation.name));
    let texts: Vec<&str> = conversation.turns.iter().map(|turn| turn.text.as_str()).collect();
    let mut names: BTreeMap<(ConversationId, u64), &str> = BTreeMap::new();
    let mut batch = Batch::new();
    for (turn, embedding) in conversation.turns.iter().zip(embed(encoder, &texts)) {
        let id = session_id(turn.session);
        names.insert((id, turn.seq), &turn.id);
        let (seq, text, at_ms) = (turn.seq, turn.text.clone(), turn.at_ms);
        batch.remember(MemoryWrite { tenant, user, conversation: id, seq, text, at_ms, embedding });
    }
    store.commit(batch)?;
    let now_ms = conversation.turns.iter().map(|turn| turn.at_ms).max().unwrap_or(0);
    let questions: Vec<&str> = conversation.questions.iter().map(|question| question.text.as_str()).collect();
    for (question, embedding) in conversation.questions.iter().zip(embed(encoder, &questions)) {
        let query = RecallQuery {
            tenant,
            user,
            text: question.text.clone(),
            embedding: Some(embedding),
            limit: CUTS[CUTS.len() - 1],
            exclude: None,
            now_ms,
            from_ms: 0,
            relevance_min,
        };
        let (sender, receiver) = mpsc::channel();
        let started = Instant::now();
        store.recall(query, Box::new(move |result| drop(sender.send(result))))?;
        let found: Vec<Recalled> = receiver.recv()??;
        scores.times_us.push(u64::try_from(started.elapsed().as_micros())?);
        let found: Vec<&str> =
            found.iter().filter_map(|found| names.get(&(found.conversation, found.seq)).copied()).collect();
        scores.add(&conversation.name, question, &found);
    }
    Ok(())
}

/// Shares of evidence found, by conversation and by category.
#[derive(Default)]
struct Scores {
    groups: BTreeMap<String, (usize, [f64; CUTS.len()])>,
    times_us: Vec<u64>,
}

impl Scores {
    fn add(&mut self, conversation: &str, question: &Question, found: &[&str]) {
        for group in
            ["all".to_owned(), format!("category {}", question.category), format!("conversation {conversation}")]
        {
            let (count, sums) = self.groups.entry(group).or_default();
            *count += 1;
            for (sum, cut) in sums.iter_mut().zip(CUTS) {
                let hits = found.iter().take(cut).filter(|id| question.evidence.contains(**id)).count();
                *sum += hits as f64 / question.evidence.len() as f64;
            }
        }
    }

    fn percentile_ms(&self, share: f64) -> f64 {
        let mut times = self.times_us.clone();
        times.sort_unstable();
        let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(at).copied().unwrap_or(0) as f64 / 1e3
    }

    fn rows(&self) -> impl Iterator<Item = (&str, usize, [f64; CUTS.len()])> {
        self.groups.iter().map(|(name, (count, sums))| (name.as_str(), *count, sums.map(|sum| sum / *count as f64)))
    }

    fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows()
            .map(|(name, count, shares)| {
                let mut cells = vec![name.to_owned(), count.to_string()];
                cells.extend(shares.iter().map(|share| format!("{share:.3}")));
                cells
            })
            .collect();
        let (p50, p99) = (self.percentile_ms(0.5), self.percentile_ms(0.99));
        let head = ["evidence turns found", "questions", "@5", "@10", "@20", "@50"];
        format!("{}\nA recall took {p50:.2} ms (p50), {p99:.2} ms (p99), embedding not counted.\n", table(&head, &rows))
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        for (name, count, shares) in self.rows() {
            let line = json!({
                "group": name, "questions": count, "recall_at_5": shares[0], "recall_at_10": shares[1],
                "recall_at_20": shares[2], "recall_at_50": shares[3],
            });
            text.push_str(&format!("{line}\n"));
        }
        let line = json!({ "group": "time", "p50_ms": self.percentile_ms(0.5), "p99_ms": self.percentile_ms(0.99) });
        text.push_str(&format!("{line}\n"));
        text
    }
}

fn read(file: &Path) -> Result<Vec<Conversation>, Trouble> {
    let trouble = |why: String| {
        let next = "the format is that of locomo10.json: a conversation or a list of them with session_N and qa";
        Trouble::new(format!("{} cannot be used", file.display()), why, next)
    };
    let bytes = std::fs::read(file).map_err(|error| trouble(error.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| trouble(error.to_string()))?;
    let stem = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let list = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    let read = |(at, value): (usize, &Value)| {
        let name = value.get("sample_id").and_then(Value::as_str);
        let name = name.map_or_else(|| if at == 0 { stem.clone() } else { format!("{stem}-{at}") }, str::to_owned);
        conversation(name, value).map_err(&trouble)
    };
    list.iter().enumerate().map(read).collect()
}

fn conversation(name: String, value: &Value) -> Result<Conversation, String> {
    // The published list holds the sessions one level deeper than the single files do.
    let sessions = value.get("conversation").unwrap_or(value);
    let mut turns = Vec::new();
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    for session in 1.. {
        let (list, date) = (format!("session_{session}"), format!("session_{session}_date_time"));
        if sessions.get(&list).is_none() && sessions.get(&date).is_none() {
            break;
        }
        let started = text(sessions, &date).and_then(|date| date_time(&date)).unwrap_or(session * SESSION_GAP_MS);
        for (seq, turn) in (0..).zip(sessions.get(&list).and_then(Value::as_array).into_iter().flatten()) {
            let missing = |field: &str| format!("turn {seq} of {list} of {name} has no `{field}`");
            let speaker = text(turn, "speaker").ok_or_else(|| missing("speaker"))?;
            let said = text(turn, "text").ok_or_else(|| missing("text"))?;
            let id = text(turn, "dia_id").ok_or_else(|| missing("dia_id"))?;
            let caption = text(turn, "blip_caption").map_or_else(String::new, |caption| format!(" [shared {caption}]"));
            let text = format!("{speaker}: {said}{caption}");
            turns.push(Turn { session, seq, id, text, at_ms: started + seq * MINUTE_MS });
        }
    }
    if turns.is_empty() {
        return Err(format!("{name} has no turns"));
    }
    let known: BTreeSet<&str> = turns.iter().map(|turn| turn.id.as_str()).collect();
    let mut questions = Vec::new();
    for asked in value.get("qa").and_then(Value::as_array).into_iter().flatten() {
        let evidence = asked.get("evidence").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        // One entry may name several turns, and a few name turns that do not exist.
        let ids = evidence.flat_map(|entry| entry.split(|c: char| c.is_whitespace() || c == ';' || c == ','));
        let evidence: BTreeSet<String> = ids.filter(|id| known.contains(id)).map(str::to_owned).collect();
        let Some(question) = text(asked, "question") else { continue };
        let category = asked.get("category").map_or_else(|| "?".to_owned(), |category| category.to_string());
        if !evidence.is_empty() {
            questions.push(Question { text: question, evidence, category });
        }
    }
    Ok(Conversation { name, turns, questions })
}

/// `1:56 pm on 8 May, 2023` as Unix milliseconds; the minutes do not matter here.
fn date_time(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let (_, date) = text.split_once(" on ")?;
    let mut parts = date.split([' ', ',']).filter(|part| !part.is_empty());
    let (day, month, year): (u64, &str, u64) =
        (parts.next()?.parse().ok()?, parts.next()?, parts.next()?.parse().ok()?);
    let month = MONTHS.iter().position(|known| month.to_lowercase().starts_with(known))? as u64;
    // Months of 30.44 days: exact enough to order sessions and to recognise a week.
    Some(((year.checked_sub(1970)? * 12 + month) * 30_437 / 1_000 + day) * 24 * 60 * MINUTE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        json!({
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                { "speaker": "Ann", "dia_id": "D1:1", "text": "I keep bees." },
                { "speaker": "Bob", "dia_id": "D1:2", "text": "Look!", "blip_caption": "a photo of a hive" },
            ],
            "qa": [
                { "question": "What does Ann keep?", "evidence": ["D1:1; D1:2", "D9:9"], "category": 4 },
                { "question": "What else?", "evidence": [], "category": 5 },
            ],
        })
    }

    #[test]
    fn both_shapes_of_the_file_read_alike() {
        let flat = conversation("x".into(), &sample()).unwrap();
        let mut sessions = sample();
        let qa = sessions.as_object_mut().unwrap().remove("qa").unwrap();
        let deep = conversation("x".into(), &json!({ "conversation": sessions, "qa": qa })).unwrap();
        assert_eq!(flat, deep);
        assert_eq!(flat.turns[1].text, "Bob: Look! [shared a photo of a hive]");
        assert_eq!(flat.questions.len(), 1, "a question without evidence cannot be judged");
        assert_eq!(flat.questions[0].evidence.len(), 2);
    }

    #[test]
    fn a_file_of_another_format_is_named() {
        let error = conversation("x".into(), &json!({ "qa": [] })).unwrap_err();
        assert!(error.contains("no turns"), "{error}");
        let broken = json!({ "session_1": [{ "speaker": "Ann", "dia_id": "D1:1" }] });
        let error = conversation("x".into(), &broken).unwrap_err();
        assert!(error.contains("turn 0 of session_1") && error.contains("`text`"), "{error}");
    }

    #[test]
    fn recall_is_the_share_of_evidence_found() {
        let question =
            Question { text: "?".into(), evidence: ["D1:1", "D1:2"].map(str::to_owned).into(), category: "4".into() };
        let mut scores = Scores::default();
        scores.add("x", &question, &["D1:9", "D1:2", "D1:8", "D1:7", "D1:6", "D1:1"]);
        let shares = scores.rows().find(|(name, ..)| *name == "all").unwrap().2;
        assert_eq!(shares, [0.5, 1.0, 1.0, 1.0]);
    }
}
