//! Prometheus text exposition (format 0.0.4) of the registry.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use millrace_proto::channel::ChannelKind;

use super::histogram::{EDGES_FIRST_TOKEN, EDGES_HTTP, EDGES_INTER_TOKEN, EDGES_REQUEST, Latency, Merged};
use super::metrics::{
    BackupSnapshot, EngineSnapshot, ExtractSnapshot, Metrics, Rejection, Route, Rung, STATUSES, ShardMetrics,
    StorageSnapshot,
};
use super::process::ProcessSnapshot;
use super::{ChannelOutcome, Health};

pub(super) fn render(metrics: &Metrics, health: &Health) -> String {
    let mut page = Page(String::with_capacity(32 * 1024));
    node(&mut page, metrics, health);
    process(&mut page);
    http(&mut page, metrics);
    channels(&mut page, metrics);
    if let Some(engine) = metrics.engine() {
        engine_counters(&mut page, &engine);
        engine_latencies(&mut page, metrics, &engine.model);
    }
    if let Some(storage) = metrics.storage() {
        store(&mut page, &storage);
    }
    if let Some(extract) = metrics.extract() {
        extraction(&mut page, extract);
    }
    if let Some(backups) = metrics.backups() {
        copies(&mut page, &backups);
    }
    page.0
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let _ = write!(self.0, "{{{}}}", render_labels(labels));
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, edges: &[f64], series: &[(String, Merged)]) {
        self.family(name, "histogram", help);
        for (labels, merged) in series {
            merged.write(&mut self.0, name, labels, edges);
        }
    }
}

/// `a="x",b="y"` with backslash, quote and newline escaped as the format asks.
fn render_labels(labels: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (at, (name, value)) in labels.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

fn sum(metrics: &Metrics, counter: impl Fn(&ShardMetrics) -> &AtomicU64) -> u64 {
    metrics.shards().iter().map(|shard| counter(shard).load(Relaxed)).sum()
}

fn merged(metrics: &Metrics, latency: impl Fn(&ShardMetrics) -> &Latency) -> Merged {
    let mut all = Merged::default();
    for shard in metrics.shards() {
        latency(shard).merge_into(&mut all);
    }
    all
}

fn node(page: &mut Page, metrics: &Metrics, health: &Health) {
    page.family("millrace_build_info", "gauge", "Version and what this node runs on; the value is always 1.");
    let facts = metrics.facts().cloned().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    page.sample("millrace_build_info", &[("version", version), ("io", &facts.io), ("kernel", &facts.kernel)], 1);
    page.one("millrace_ready", "gauge", "1 when the node takes traffic.", u8::from(health.is_ready()));
    page.one("millrace_draining", "gauge", "1 from the first termination signal on.", u8::from(health.is_draining()));
    let uptime = metrics.uptime().as_secs_f64();
    page.one("millrace_uptime_seconds", "gauge", "Seconds since the node began to start.", uptime);
    page.one("millrace_shards", "gauge", "Reactor threads.", metrics.shards().len());
    let (limit, planned) = (facts.memory_limit_bytes, facts.memory_planned_bytes);
    page.one("millrace_memory_limit_bytes", "gauge", "MEMORY_LIMIT in bytes.", limit);
    page.one("millrace_memory_planned_bytes", "gauge", "Bytes that the memory plan reserves at most.", planned);
    let scrapes = metrics.scrapes.load(Relaxed);
    page.one("millrace_scrapes_total", "counter", "Scrapes of this page.", scrapes);
}

fn process(page: &mut Page) {
    let now = ProcessSnapshot::read();
    page.one("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", now.cpu_seconds);
    let help = "Resident memory in bytes, mapped model files included.";
    page.one("process_resident_memory_bytes", "gauge", help, now.resident_bytes);
    let help = "Resident memory in bytes that belongs to no file: heap, stacks and packed weights.";
    page.one("process_resident_anonymous_bytes", "gauge", help, now.anonymous_bytes);
    page.one("process_resident_memory_peak_bytes", "gauge", "Highest resident memory so far.", now.peak_bytes);
    page.one("process_virtual_memory_bytes", "gauge", "Address space in bytes.", now.virtual_bytes);
    page.one("process_open_fds", "gauge", "Open file descriptors.", now.open_fds);
    page.one("process_max_fds", "gauge", "Soft limit of file descriptors.", now.max_fds);
    page.one("process_threads", "gauge", "Threads of the process.", now.threads);
    let help = "Start time of the process in seconds since the Unix epoch.";
    page.one("process_start_time_seconds", "gauge", help, now.start_seconds);
}

fn http(page: &mut Page, metrics: &Metrics) {
    page.family("millrace_http_requests_total", "counter", "HTTP requests answered, by route and status code.");
    for route in Route::ALL {
        for (at, status) in STATUSES.iter().enumerate() {
            let count: u64 = metrics.shards().iter().map(|shard| shard.requests_of(route as usize, at)).sum();
            if count > 0 {
                let code = if *status == 0 { "other".to_owned() } else { status.to_string() };
                let labels = [("route", route.as_str()), ("code", code.as_str())];
                page.sample("millrace_http_requests_total", &labels, count);
            }
        }
    }
    let mut series = Vec::new();
    for route in Route::ALL {
        let all = merged(metrics, |shard| &shard.request_seconds[route as usize]);
        // Untouched routes are left out: 20 zero lines each would be most of the page.
        if all.count() > 0 {
            series.push((render_labels(&[("route", route.as_str())]), all));
        }
    }
    let help = "First byte of a request to last byte of its answer.";
    page.histogram("millrace_http_request_duration_seconds", help, EDGES_HTTP, &series);
    page.family("millrace_rejected_total", "counter", "Requests and events turned away, by reason.");
    for reason in Rejection::ALL {
        let count: u64 = metrics.shards().iter().map(|shard| shard.rejections_of(reason as usize)).sum();
        page.sample("millrace_rejected_total", &[("reason", reason.as_str())], count);
    }
    page.family("millrace_admissions_total", "counter", "Requests for answers of the API, by how they were admitted.");
    for rung in Rung::ALL {
        let count: u64 = metrics.shards().iter().map(|shard| shard.admissions_of(rung as usize)).sum();
        page.sample("millrace_admissions_total", &[("rung", rung.as_str())], count);
    }
    page.one("millrace_connections_open", "gauge", "Client connections open.", metrics.connections_open());
    let total = sum(metrics, |shard| &shard.connections_total);
    page.one("millrace_connections_total", "counter", "Client connections accepted.", total);
    let streams = sum(metrics, |shard| &shard.streams_open);
    page.one("millrace_streams_open", "gauge", "Token streams open to clients.", streams);
    page.family("millrace_shard_connections_open", "gauge", "Client connections open, by shard.");
    for (index, shard) in metrics.shards().iter().enumerate() {
        let labels = [("shard", &*index.to_string())];
        page.sample("millrace_shard_connections_open", &labels, shard.connections_open());
    }
    let drained = sum(metrics, |shard| &shard.mailbox_messages);
    page.one("millrace_mailbox_messages_total", "counter", "Messages between shards and subsystems.", drained);
    let full = sum(metrics, |shard| &shard.mailbox_full);
    page.one("millrace_mailbox_full_total", "counter", "Messages that found a mailbox full.", full);
}

/// Pairs that never happened are left out: the page would have hundreds of zeros.
fn channel_outcomes(page: &mut Page, metrics: &Metrics, name: &str, label: &str, help: &str, rejects: bool) {
    page.family(name, "counter", help);
    for &kind in ChannelKind::ALL {
        for outcome in ChannelOutcome::ALL.into_iter().filter(|outcome| outcome.is_reject() == rejects) {
            let count: u64 = metrics.shards().iter().map(|shard| shard.channels.of(kind, outcome)).sum();
            if count > 0 {
                page.sample(name, &[("channel", kind.as_str()), (label, outcome.as_str())], count);
            }
        }
    }
}

fn channels(page: &mut Page, metrics: &Metrics) {
    let inbound = sum(metrics, |shard| &shard.inbound);
    page.one("millrace_channel_inbound_total", "counter", "Channel messages accepted durably.", inbound);
    channel_outcomes(
        page,
        metrics,
        "millrace_channel_events_total",
        "outcome",
        "Events of channels, by outcome.",
        false,
    );
    channel_outcomes(
        page,
        metrics,
        "millrace_channel_reject_total",
        "reason",
        "Requests of channels that were refused, by reason.",
        true,
    );
    let series = [(String::new(), merged(metrics, |shard| &shard.ack))];
    let help = "Arrival of a channel message to its durable acknowledgement.";
    page.histogram("millrace_channel_ack_seconds", help, EDGES_HTTP, &series);
    page.family("millrace_channel_deliveries_total", "counter", "Replies by final outcome.");
    let outcomes: [(&str, u64); 3] = [
        ("delivered", sum(metrics, |shard| &shard.delivered)),
        ("dead", sum(metrics, |shard| &shard.delivery_dead)),
        ("unknown", sum(metrics, |shard| &shard.delivery_unknown)),
    ];
    for (outcome, count) in outcomes {
        page.sample("millrace_channel_deliveries_total", &[("outcome", outcome)], count);
    }
    let retries = sum(metrics, |shard| &shard.delivery_retries);
    page.one("millrace_channel_delivery_retries_total", "counter", "Delivery attempts repeated.", retries);
    let series = [(String::new(), merged(metrics, |shard| &shard.delivery))];
    let help = "Creation of a reply to the platform's receipt.";
    page.histogram("millrace_channel_delivery_seconds", help, EDGES_REQUEST, &series);
    let notices = sum(metrics, |shard| &shard.notices);
    page.one("millrace_notices_total", "counter", "Visible events in sessions, such as a cut history.", notices);
    let recalls = sum(metrics, |shard| &shard.recalls);
    page.one("millrace_recalls_total", "counter", "Memory searches for a turn.", recalls);
    let disk_reads = sum(metrics, |shard| &shard.disk_reads);
    let help = "Conversations that were read from the disk, on a read thread.";
    page.one("millrace_conversations_read_from_disk_total", "counter", help, disk_reads);
}

fn engine_counters(page: &mut Page, engine: &EngineSnapshot) {
    let model = [("model_name", engine.model.as_str())];
    let gauges: [(&str, &str, &str, f64); 21] = [
        ("vllm:num_requests_running", "gauge", "Requests in the batch.", engine.running as f64),
        ("vllm:num_requests_waiting", "gauge", "Requests waiting for a place in the batch.", engine.waiting as f64),
        ("vllm:kv_cache_usage_perc", "gauge", "KV cache in use; 1 is full.", engine.kv_usage),
        ("vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", engine.prompt_tokens as f64),
        ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens reused.", engine.prompt_tokens_cached as f64),
        ("vllm:generation_tokens_total", "counter", "Tokens generated.", engine.generation_tokens as f64),
        ("vllm:num_preemptions_total", "counter", "Sequences put back for want of KV.", engine.preemptions as f64),
        ("vllm:spec_decode_num_drafts_total", "counter", "Guesses verified.", engine.drafts as f64),
        ("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens in them.", engine.draft_tokens as f64),
        ("vllm:spec_decode_num_accepted_tokens_total", "counter", "Right ones.", engine.accepted_tokens as f64),
        ("millrace_engine_steps_total", "counter", "Steps of the batch.", engine.steps as f64),
        ("millrace_engine_refused_total", "counter", "Requests refused at submission.", engine.refused as f64),
        ("millrace_ttft_forecasts_total", "counter", "First tokens that were predicted.", engine.forecasts as f64),
        ("millrace_ttft_forecast_seconds_total", "counter", "Sum of predicted times.", engine.forecast_seconds),
        ("millrace_ttft_forecast_error_seconds_total", "counter", "Sum of distances.", engine.forecast_error_seconds),
        ("millrace_ttft_forecasts_good_total", "counter", "Within a factor of two.", engine.forecast_good as f64),
        ("millrace_constraints_total", "counter", "Schemas and grammars prepared.", engine.constraints as f64),
        ("millrace_constraint_seconds_total", "counter", "Time until they were ready.", engine.constraint_seconds),
        ("millrace_masks_total", "counter", "Token masks of constrained requests.", engine.masks as f64),
        ("millrace_mask_seconds_total", "counter", "Time of mask threads for them.", engine.mask_seconds),
        ("millrace_mask_wait_seconds_total", "counter", "Time the engine waited for them.", engine.mask_wait_seconds),
    ];
    for (name, kind, help, value) in gauges {
        page.family(name, kind, help);
        page.sample(name, &model, value);
    }
    page.family("vllm:request_success_total", "counter", "Finished requests, by reason.");
    let reasons = [
        ("stop", engine.finished_stop),
        ("length", engine.finished_length),
        ("abort", engine.finished_cancelled),
        ("deadline", engine.finished_deadline),
        ("error", engine.finished_error),
    ];
    for (reason, count) in reasons {
        let labels = [("finished_reason", reason), ("model_name", engine.model.as_str())];
        page.sample("vllm:request_success_total", &labels, count);
    }
    let bytes: [(&str, &str, u64); 4] = [
        ("millrace_model_weights_bytes", "Bytes of the chat model's weights in memory.", engine.weights_bytes),
        ("millrace_encoder_weights_bytes", "Bytes of the encoder's weights in memory.", engine.encoder_bytes),
        ("millrace_kv_pool_bytes", "Bytes that the KV pool may take.", engine.kv_bytes),
        ("millrace_kv_resident_bytes", "Bytes of it that were used so far.", engine.kv_resident_bytes),
    ];
    for (name, help, value) in bytes {
        page.family(name, "gauge", help);
        page.sample(name, &model, value);
    }
}

type Pick = fn(&ShardMetrics) -> &Latency;

fn engine_latencies(page: &mut Page, metrics: &Metrics, model: &str) {
    let labels = render_labels(&[("model_name", model)]);
    let families: [(&str, &str, &[f64], Pick); 6] = [
        ("vllm:time_to_first_token_seconds", "Submission to first token.", EDGES_FIRST_TOKEN, |s| &s.first_token),
        ("vllm:inter_token_latency_seconds", "Gap between tokens.", EDGES_INTER_TOKEN, |s| &s.inter_token),
        ("vllm:e2e_request_latency_seconds", "Submission to last token.", EDGES_REQUEST, |s| &s.turn_total),
        ("vllm:request_queue_time_seconds", "Wait for a place in the batch.", EDGES_REQUEST, |s| &s.turn_queue),
        ("vllm:request_prefill_time_seconds", "Prompt processing.", EDGES_REQUEST, |s| &s.turn_prefill),
        ("vllm:request_decode_time_seconds", "First to last generated token.", EDGES_REQUEST, |s| &s.turn_decode),
    ];
    for (name, help, edges, pick) in families {
        page.histogram(name, help, edges, &[(labels.clone(), merged(metrics, pick))]);
    }
    let first_token = merged(metrics, |shard| &shard.first_token);
    let name = "millrace_time_to_first_token_quantile_seconds";
    page.family(name, "gauge", "Exact quantiles since start, from the HDR histogram.");
    for (label, quantile) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)] {
        if let Some(seconds) = first_token.quantile_seconds(quantile) {
            page.sample(name, &[("model_name", model), ("quantile", label)], seconds);
        }
    }
}

fn store(page: &mut Page, storage: &StorageSnapshot) {
    page.one("millrace_commit_batches_total", "counter", "Batches committed durably.", storage.commits);
    page.one("millrace_commit_groups_total", "counter", "Group commits, one fsync each.", storage.groups);
    page.one("millrace_commit_failures_total", "counter", "Batches that could not be committed.", storage.failures);
    page.one("millrace_commit_refused_total", "counter", "Batches refused by a full queue.", storage.refused);
    page.one("millrace_commit_waiting", "gauge", "Batches waiting for the commit thread.", storage.waiting);
    let help = "Time spent in writes and their fsync.";
    page.one("millrace_commit_seconds_total", "counter", help, storage.commit_seconds);
}

fn extraction(page: &mut Page, extract: ExtractSnapshot) {
    let ExtractSnapshot { messages, skipped, added, ended, tokens, retries } = extract;
    page.one("millrace_extract_messages_total", "counter", "Messages that were searched for statements.", messages);
    let help = "Messages that the model could not answer about; they are not tried again.";
    page.one("millrace_extract_skipped_total", "counter", help, skipped);
    page.one("millrace_extract_added_total", "counter", "Statements that were added to users' memories.", added);
    page.one("millrace_extract_ended_total", "counter", "Statements that got an end.", ended);
    page.one("millrace_extract_tokens_total", "counter", "Tokens that the extraction used.", tokens);
    page.one("millrace_extract_retries_total", "counter", "Rounds that are tried again later.", retries);
}

fn copies(page: &mut Page, backups: &BackupSnapshot) {
    page.one("millrace_backups_total", "counter", "Backups that were made.", backups.made);
    page.one("millrace_backup_failures_total", "counter", "Backups that failed.", backups.failed);
    page.one("millrace_backup_bytes_total", "counter", "Bytes that were sent for backups.", backups.bytes_sent);
    page.one("millrace_backup_running", "gauge", "1 while a backup is being made.", u64::from(backups.running));
    let help = "When the last backup was made, in Unix seconds; 0 = never.";
    page.one("millrace_backup_last_success_timestamp_seconds", "gauge", help, backups.last_success_s);
    let help = "Forgotten users whose keys may still be in a copy in some backup target.";
    page.one("millrace_backup_keys_waiting", "gauge", help, backups.keys_waiting);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::super::Turn;
    use super::*;

    fn busy() -> Metrics {
        let metrics = Metrics::new(2);
        metrics.shard(0).http_requests(Route::Chat, 200);
        metrics.shard(1).http_requests(Route::Chat, 200);
        metrics.shard(1).http_requests(Route::Chat, 299);
        metrics.shard(1).rejected(Rejection::RateLimited);
        metrics.shard(0).channel(ChannelKind::Slack, ChannelOutcome::Stale);
        metrics.shard(1).channel(ChannelKind::Slack, ChannelOutcome::Accepted);
        metrics.shard(0).request_seconds(Route::Chat, Duration::from_millis(12));
        metrics.shard(0).first_token(Duration::from_millis(90));
        metrics.shard(1).inter_token(Duration::from_millis(40), 2);
        let part = Duration::from_millis(400);
        metrics.shard(1).turn(Turn { total: part * 3, queue: part, prefill: part, decode: part });
        metrics.set_engine(|| EngineSnapshot {
            model: "a \"quoted\" name".into(),
            running: 3,
            finished_stop: 7,
            ..Default::default()
        });
        metrics.set_storage(StorageSnapshot::default);
        metrics.set_extract(ExtractSnapshot::default);
        metrics.set_backups(BackupSnapshot::default);
        metrics
    }

    #[test]
    fn shards_add_up_and_labels_are_escaped() {
        let text = busy().render(&Health::new());
        for line in [
            "millrace_http_requests_total{route=\"chat_completions\",code=\"200\"} 2\n",
            "millrace_http_requests_total{route=\"chat_completions\",code=\"other\"} 1\n",
            "millrace_rejected_total{reason=\"rate_limited\"} 1\n",
            "millrace_channel_reject_total{channel=\"slack\",reason=\"stale\"} 1\n",
            "millrace_channel_events_total{channel=\"slack\",outcome=\"accepted\"} 1\n",
            "vllm:num_requests_running{model_name=\"a \\\"quoted\\\" name\"} 3\n",
            "vllm:request_success_total{finished_reason=\"stop\",model_name=\"a \\\"quoted\\\" name\"} 7\n",
            "vllm:inter_token_latency_seconds_count{model_name=\"a \\\"quoted\\\" name\"} 2\n",
            "millrace_ready 0\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_sample_belongs_to_a_declared_family_and_none_is_declared_twice() {
        let text = busy().render(&Health::new());
        let mut declared = HashSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(declared.insert(rest.split(' ').next().unwrap().to_owned()), "{rest} is declared twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let known = declared.contains(name) || family.is_some_and(|family| declared.contains(family));
                assert!(known, "{line}");
                let value = line.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
