//! The metrics port: valid Prometheus text, the names that dashboards know, numbers that add up.

use std::collections::{HashMap, HashSet};

use millrace_tests::{Server, client};

fn scrape(server: &Server) -> String {
    let reply = client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("an answer");
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").is_some_and(|value| value.starts_with("text/plain")), "{:?}", reply.headers);
    reply.text()
}

/// Checks the grammar of the text format and returns all series.
fn parse(text: &str) -> HashMap<String, f64> {
    let (mut typed, mut series) = (HashSet::new(), HashMap::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "typed twice: {line}");
            continue;
        }
        if line.starts_with('#') {
            assert!(line.starts_with("# HELP "), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = match value {
            "+Inf" => f64::INFINITY,
            text => text.parse().unwrap_or_else(|_| panic!("{line}")),
        };
        let bare = name.split('{').next().unwrap_or(name);
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| bare.strip_suffix(end))
            .filter(|family| typed.contains(*family));
        assert!(typed.contains(bare) || family.is_some(), "no TYPE before {line}");
        assert!(series.insert(name.to_owned(), value).is_none(), "twice: {name}");
    }
    series
}

/// The sum over all series of a name.
fn sum(series: &HashMap<String, f64>, name: &str) -> f64 {
    series.iter().filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, value)| value).sum()
}

#[test]
fn engine_metrics_have_the_known_names_and_count_right() {
    let server = Server::start_default();
    let before = parse(&scrape(&server));
    let replies: Vec<_> = (0..3).map(|number| server.ask(&format!("Question number {number}"))).collect();
    let after = parse(&scrape(&server));
    for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
        assert!(after.keys().any(|key| key.starts_with(name)), "{name}");
    }
    let total =
        |field: &str| replies.iter().map(|reply| reply["usage"][field].as_f64().unwrap_or(f64::NAN)).sum::<f64>();
    let grown = |name: &str| sum(&after, name) - sum(&before, name);
    let close = |one: f64, two: f64| (one - two).abs() < 0.5;
    assert!(
        close(grown("vllm:generation_tokens_total"), total("completion_tokens")),
        "{} {}",
        grown("vllm:generation_tokens_total"),
        total("completion_tokens")
    );
    assert!(
        close(grown("vllm:prompt_tokens_total"), total("prompt_tokens")),
        "{} {}",
        grown("vllm:prompt_tokens_total"),
        total("prompt_tokens")
    );
    assert!(close(grown("vllm:request_success_total"), 3.0), "{}", grown("vllm:request_success_total"));
    for name in ["vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"] {
        assert!(close(grown(&format!("{name}_count")), 3.0), "{name}");
        assert!(grown(&format!("{name}_sum")) > 0.0, "{name}");
    }
    assert!(grown("vllm:inter_token_latency_seconds_count") > 0.0);
}

#[test]
fn histograms_are_cumulative_and_end_at_their_count() {
    let server = Server::start_default();
    server.ask("Hello?");
    let text = scrape(&server);
    let series = parse(&text);
    let mut histograms: HashMap<String, Vec<(f64, f64)>> = HashMap::new();
    for (name, value) in &series {
        // `le` as a whole label name: "quantile" ends in the same letters.
        let label = ["{le=\"", ",le=\""].iter().find_map(|label| name.split_once(label));
        if let Some((start, rest)) = label
            && let Some((bound, end)) = rest.split_once('"')
        {
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") };
            histograms.entry(format!("{start}{end}")).or_default().push((bound, *value));
        }
    }
    assert!(histograms.len() >= 3, "{:?}", histograms.keys());
    for (name, mut buckets) in histograms {
        buckets.sort_by(|one, two| one.0.total_cmp(&two.0));
        assert!(buckets.is_sorted_by(|one, two| one.1 <= two.1), "{name} is not cumulative: {buckets:?}");
        assert_eq!(buckets.last().map(|bucket| bucket.0), Some(f64::INFINITY), "{name} has no +Inf");
    }
}

#[test]
fn health_answers_on_both_ports_and_the_metrics_port_has_nothing_else() {
    let server = Server::start_default();
    for path in ["/healthz", "/readyz"] {
        for address in [server.http, server.metrics] {
            let reply = client::request(address, "GET", path, "", &[], b"").expect("an answer");
            assert_eq!(reply.status, 200, "{path} on {address}: {}", reply.text());
        }
    }
    let reply = client::request(server.metrics, "GET", "/v1/models", &server.key, &[], b"").expect("an answer");
    assert_eq!(reply.status, 404);
    let reply = client::request(server.http, "GET", "/metrics", "", &[], b"").expect("an answer");
    assert!(matches!(reply.status, 401 | 404), "metrics are not public: {}", reply.status);
}
