//! Requirements such as `p99<500ms`, `ttft.p95<=1s`, `success>=99.5%`.

use crate::Report;
use std::fmt;
use std::str::FromStr;

/// A condition on a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    text: String,
    metric: Metric,
    comparison: Comparison,
    value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    Time(Series, Point),
    Success,
    RequestsPerSecond,
    TokensPerSecond,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Series {
    Latency,
    Service,
    Ttft,
    Itl,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Point {
    P50,
    P90,
    P95,
    P99,
    P999,
    Max,
    Mean,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Requirement {
    /// The value of the metric in a report; `None` when nothing was measured.
    pub fn value(&self, report: &Report) -> Option<f64> {
        match self.metric {
            Metric::Success => (report.requests > 0).then_some(report.success_percent),
            Metric::RequestsPerSecond => Some(report.ok_per_second),
            Metric::TokensPerSecond => Some(report.tokens_per_second),
            Metric::Time(series, point) => {
                let series = match series {
                    Series::Latency => &report.latency_ms,
                    Series::Service => &report.service_ms,
                    Series::Ttft => &report.ttft_ms,
                    Series::Itl => &report.itl_ms,
                };
                series.as_ref().map(|series| match point {
                    Point::P50 => series.p50,
                    Point::P90 => series.p90,
                    Point::P95 => series.p95,
                    Point::P99 => series.p99,
                    Point::P999 => series.p99_9,
                    Point::Max => series.max,
                    Point::Mean => series.mean,
                })
            }
        }
    }

    /// Whether a report meets it. What was not measured is not met.
    pub fn is_met(&self, report: &Report) -> bool {
        self.value(report).is_some_and(|found| match self.comparison {
            Comparison::Less => found < self.value,
            Comparison::LessOrEqual => found <= self.value,
            Comparison::Greater => found > self.value,
            Comparison::GreaterOrEqual => found >= self.value,
        })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>']).ok_or("a requirement has the form METRIC<VALUE or METRIC>=VALUE")?;
        let (name, rest) = text.split_at(at);
        let (comparison, value) = if let Some(value) = rest.strip_prefix("<=") {
            (Comparison::LessOrEqual, value)
        } else if let Some(value) = rest.strip_prefix(">=") {
            (Comparison::GreaterOrEqual, value)
        } else if let Some(value) = rest.strip_prefix('<') {
            (Comparison::Less, value)
        } else {
            (Comparison::Greater, &rest[1..])
        };
        let metric = metric(name.trim())?;
        let value = value_of(metric, value.trim())?;
        Ok(Self { text: text.to_owned(), metric, comparison, value })
    }
}

fn metric(name: &str) -> Result<Metric, String> {
    match name {
        "success" => return Ok(Metric::Success),
        "rps" => return Ok(Metric::RequestsPerSecond),
        "tokens/s" => return Ok(Metric::TokensPerSecond),
        _ => {}
    }
    let (series, point) =
        name.split_once('.').filter(|(series, _)| !series.starts_with('p')).unwrap_or(("latency", name));
    let series = match series {
        "latency" => Some(Series::Latency),
        "service" => Some(Series::Service),
        "ttft" => Some(Series::Ttft),
        "itl" => Some(Series::Itl),
        _ => None,
    };
    let point = match point {
        "p50" => Some(Point::P50),
        "p90" => Some(Point::P90),
        "p95" => Some(Point::P95),
        "p99" => Some(Point::P99),
        "p99.9" => Some(Point::P999),
        "max" => Some(Point::Max),
        "mean" => Some(Point::Mean),
        _ => None,
    };
    series.zip(point).map(|(series, point)| Metric::Time(series, point)).ok_or_else(|| {
        format!(
            "unknown metric {name:?}; known: p50 p90 p95 p99 p99.9 max mean, each also with latency. service. ttft. \
             or itl. before it, success, rps, tokens/s"
        )
    })
}

/// Times become milliseconds; `success` is in percent; rates are plain numbers.
fn value_of(metric: Metric, text: &str) -> Result<f64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    match (metric, unit) {
        (Metric::Time(..), "us") => Ok(number / 1e3),
        (Metric::Time(..), "ms") => Ok(number),
        (Metric::Time(..), "s") => Ok(number * 1e3),
        (Metric::Time(..), _) => Err(format!("{text:?} needs a unit: us, ms or s")),
        (Metric::Success, "%") if number <= 100.0 => Ok(number),
        (Metric::Success, _) => Err(format!("{text:?} must be a percentage such as 99.5%")),
        (Metric::RequestsPerSecond | Metric::TokensPerSecond, "") => Ok(number),
        (Metric::RequestsPerSecond | Metric::TokensPerSecond, _) => Err(format!("{text:?} must be a plain number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Percentiles;
    use proptest::prelude::*;

    fn report() -> Report {
        Report {
            requests: 200,
            success_percent: 99.5,
            ok_per_second: 20.0,
            tokens_per_second: 300.0,
            latency_ms: Some(Percentiles { p99: 400.0, p99_9: 900.0, ..Percentiles::default() }),
            ..Report::default()
        }
    }

    #[test]
    fn conditions_are_checked() {
        let met = |text: &str| text.parse::<Requirement>().unwrap().is_met(&report());
        assert!(met("p99<500ms") && met("latency.p99<=400ms") && met("p99 < 0.5s") && met("p99.9>=900000us"));
        assert!(!met("p99<400ms") && !met("p99.9<900ms"));
        assert!(met("success>=99.5%") && !met("success>99.5%"));
        assert!(met("rps>=20") && met("tokens/s>299.5"));
        assert!(!met("ttft.p99<10s"), "what was not measured is not met");
        let empty = Report::default();
        assert!(!"success>=0%".parse::<Requirement>().unwrap().is_met(&empty));
    }

    #[test]
    fn bad_conditions_are_explained() {
        for text in [
            "",
            "p99",
            "p98<5ms",
            "p99<5",
            "p99<ms",
            "p99<-5ms",
            "success>=99.5",
            "success>=101%",
            "rps>5ms",
            "foo.p99<5ms",
            "p99=5ms",
            "p99<1e3ms",
        ] {
            assert!(text.parse::<Requirement>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_condition_or_an_error(text in ".{0,30}") {
            let _ = text.parse::<Requirement>();
        }
    }
}
