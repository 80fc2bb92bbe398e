//! `sandbase sandbox events`: what became of a sandbox.

use api_types::SandboxEvent;
use http::Method;
use serde_json::Value;

use super::http::{Client, escaped};
use super::output::{Output, Table, instant, print_json};

/// Most events of one answer.
const PAGE: usize = 100;

/// Prints all events of a sandbox: for people the oldest first, as JSON as the server has them.
pub(super) async fn show(client: &Client, sandbox: &str, output: Output) -> anyhow::Result<()> {
    let path = format!("/events/sandboxes/{}", escaped(sandbox));
    let ascending = output == Output::People;
    let mut all: Vec<Value> = Vec::new();
    loop {
        let offset = all.len();
        let page = format!("{path}?limit={PAGE}&offset={offset}&orderAsc={ascending}");
        let answer = client.call(Method::GET, &page, &Value::Null).await?;
        let page: Vec<Value> = answer.decode()?;
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            break;
        }
    }
    if output == Output::Json {
        return print_json(&Value::Array(all));
    }
    let mut table = Table::new(["TIME", "EVENT", "MORE"]);
    for value in all {
        let event: SandboxEvent = serde_json::from_value(value)?;
        let more = event.event_data.iter().map(|(name, value)| match value {
            Value::String(text) => format!("{name}: {text}"),
            other => format!("{name}: {other}"),
        });
        let more: Vec<_> = more.collect();
        table.row([instant(event.timestamp), event.event_label, more.join(", ")]);
    }
    table.print()
}
