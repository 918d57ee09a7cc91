//! `apply`, `diff`, `export` and `schema`: settings kept in files under version control.

use std::path::PathBuf;

use chunkcache_proto::v1::{
    GetEntryRequest, Job, ListEntriesRequest, ListSourcesRequest, OpenEntryRequest,
    PinEntryRequest, PutSourceRequest, Source,
};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::connection::Client;
use super::documents::{self, Content, Document};
use super::failure::CliError;
use super::names::entry_name;
use super::output::{Printer, Rows, or_dash};
use super::{is_set, precache, switch};

/// Entries per page; the server's own limit.
const PAGE_SIZE: u32 = 1000;

pub(super) fn commands() -> [Command; 4] {
    let file = || {
        Arg::new("file")
            .short('f')
            .long("file")
            .value_name("PATH")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("YAML file, a directory of them, or - for standard input")
    };
    [
        Command::new("apply")
            .about("Make sources, pins and precache jobs what files say")
            .after_help(
                "Every document is checked before any is carried out. What is registered and not \
                 in the files stays as it is. A secret written as *** stays what it was.",
            )
            .args([
                file(),
                switch("dry-run", "Check and say what would change; change nothing"),
            ]),
        Command::new("diff")
            .about("Say what apply would change")
            .arg(file()),
        Command::new("export").about(
            "Print all sources and pins as YAML for apply; secrets are \
         ***",
        ),
        Command::new("schema").about("Print the JSON schema of the files, for editors"),
    ]
}

/// The result of applying a document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Created,
    Changed,
    Unchanged,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Changed => "changed",
            Outcome::Unchanged => "unchanged",
        }
    }
}

/// What documents are compared with.
struct Present {
    sources: Vec<Source>,
    jobs: Vec<Job>,
}

/// A document that was compared with the registered state.
struct Checked {
    document: Document,
    outcome: Outcome,
    /// Field, before, after.
    changes: Vec<(String, Value, Value)>,
}

pub(super) async fn run(
    verb: &str,
    arguments: &ArgMatches,
    client: &mut Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    match verb {
        "schema" => {
            let schema = documents::schema();
            printer.result(&schema, || format!("{schema:#}\n"))
        }
        "export" => export(client, printer).await,
        _ => {
            let path = arguments
                .get_one::<PathBuf>("file")
                .ok_or_else(|| CliError::Usage("-f PATH is missing".to_owned()))?;
            let mut checked = Vec::new();
            let mut problems = Vec::new();
            let documents = documents::read(path)?;
            let is_precache = |it: &Document| matches!(it.content, Content::Precache(_));
            let present = Present {
                sources: sources(client).await?,
                jobs: match documents.iter().any(is_precache) {
                    true => precache::list(true, client).await?,
                    false => Vec::new(),
                },
            };
            for document in documents {
                let place = document.place.clone();
                match check(document, &present, client).await {
                    Ok(document) => checked.push(document),
                    Err(CliError::Refused(text)) => problems.push(format!("{place}: {text}")),
                    Err(error) => return Err(error),
                }
            }
            if !problems.is_empty() {
                problems.push("nothing was changed".to_owned());
                return Err(CliError::Refused(problems.join("\n")));
            }
            if verb == "diff" {
                return diff(&checked, printer);
            }
            let dry = is_set(arguments, "dry-run");
            if !dry {
                for it in &checked {
                    carry_out(it, client).await.map_err(|error| match error {
                        CliError::Refused(text) => {
                            CliError::Refused(format!("{}: {text}", it.document.place))
                        }
                        other => other,
                    })?;
                }
            }
            report(&checked, dry, printer)
        }
    }
}

async fn sources(client: &mut Client) -> Result<Vec<Source>, CliError> {
    let answer = client
        .call(ListSourcesRequest {}, async |mut s, r| {
            s.list_sources(r).await
        })
        .await?;
    Ok(answer.sources)
}

async fn check(
    document: Document,
    present: &Present,
    client: &mut Client,
) -> Result<Checked, CliError> {
    let (outcome, changes) = match &document.content {
        Content::Source(source) => {
            let request = PutSourceRequest {
                source: Some(source.as_ref().clone()),
                validate_only: true,
                check: false,
            };
            let answer = client
                .call(request, async |mut s, r| s.put_source(r).await)
                .await?;
            let after = documents::of_source(&answer.source.unwrap_or_default());
            match present.sources.iter().find(|it| it.name == source.name) {
                None => (Outcome::Created, differences(&Value::Null, &after)),
                Some(_) if answer.unchanged => (Outcome::Unchanged, Vec::new()),
                Some(before) => {
                    let mut changes = differences(&documents::of_source(before), &after);
                    if changes.is_empty() {
                        changes.push(("secrets".to_owned(), json!("***"), json!("***")));
                    }
                    (Outcome::Changed, changes)
                }
            }
        }
        Content::Pin { entry } => {
            let request = GetEntryRequest {
                entry: Some(entry_name(entry)?),
            };
            let found = client
                .call(request, async |mut s, r| s.get_entry(r).await)
                .await;
            let found = found.ok().and_then(|it| it.entry?.entry);
            if found.is_some_and(|entry| entry.pinned) {
                (Outcome::Unchanged, Vec::new())
            } else {
                let change = ("pinned".to_owned(), json!(false), json!(true));
                (Outcome::Created, vec![change])
            }
        }
        Content::Precache(wanted) => {
            if precache::is_asked_for(wanted, &present.jobs, client).await? {
                (Outcome::Unchanged, Vec::new())
            } else {
                let change = ("job".to_owned(), Value::Null, json!(wanted.target));
                (Outcome::Created, vec![change])
            }
        }
    };
    Ok(Checked {
        document,
        outcome,
        changes,
    })
}

async fn carry_out(checked: &Checked, client: &mut Client) -> Result<(), CliError> {
    if checked.outcome == Outcome::Unchanged {
        return Ok(());
    }
    match &checked.document.content {
        Content::Source(source) => {
            let request = PutSourceRequest {
                source: Some(source.as_ref().clone()),
                validate_only: false,
                check: false,
            };
            let answer = client
                .call(request, async |mut s, r| s.put_source(r).await)
                .await?;
            super::output::warn_unconfirmed(&answer.unconfirmed_edges);
        }
        Content::Pin { entry } => {
            // The object may be unknown to the cluster until now.
            let request = OpenEntryRequest {
                entry: Some(entry_name(entry)?),
                position: 0,
            };
            client
                .call(request, async |mut s, r| s.open_entry(r).await)
                .await?;
            let request = PinEntryRequest {
                entry: Some(entry_name(entry)?),
                pinned: true,
            };
            client
                .call(request, async |mut s, r| s.pin_entry(r).await)
                .await?;
        }
        Content::Precache(wanted) => {
            precache::ask(wanted, client).await?;
        }
    }
    Ok(())
}

/// Fields that differ between two documents.
fn differences(before: &Value, after: &Value) -> Vec<(String, Value, Value)> {
    let empty = serde_json::Map::new();
    let (before, after) = (
        before.as_object().unwrap_or(&empty),
        after.as_object().unwrap_or(&empty),
    );
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let value = |of: &serde_json::Map<String, Value>, name: &str| {
        of.get(name).cloned().unwrap_or(Value::Null)
    };
    names
        .into_iter()
        .map(|name| (name.clone(), value(before, name), value(after, name)))
        .filter(|(_, before, after)| before != after)
        .collect()
}

fn diff(checked: &[Checked], printer: &mut Printer<'_>) -> Result<(), CliError> {
    let json: Value = checked
        .iter()
        .map(|it| {
            let changes = it.changes.iter().map(|(field, before, after)| {
                json!({ "field": field, "before": before, "after": after })
            });
            json!({
                "name": it.document.content.name(),
                "change": it.outcome.word(),
                "changes": changes.collect::<Value>(),
            })
        })
        .collect();
    printer.result(&json, || {
        let mut text = String::new();
        for it in checked.iter().filter(|it| it.outcome != Outcome::Unchanged) {
            let name = it.document.content.name();
            text.push_str(&format!("{name}: {}\n", it.outcome.word()));
            for (field, before, after) in &it.changes {
                if !before.is_null() {
                    text.push_str(&format!("- {field}: {before}\n"));
                }
                if !after.is_null() {
                    text.push_str(&format!("+ {field}: {after}\n"));
                }
            }
        }
        if text.is_empty() {
            text.push_str("no differences\n");
        }
        text
    })
}

fn report(checked: &[Checked], dry: bool, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let json: Value = checked
        .iter()
        .map(|it| {
            json!({
                "name": it.document.content.name(),
                "change": it.outcome.word(),
                "dry_run": dry,
            })
        })
        .collect();
    printer.result(&json, || {
        let mut rows = Rows::new(&["what", "change", "fields"]);
        for it in checked {
            let fields: Vec<&str> = it
                .changes
                .iter()
                .map(|(field, ..)| field.as_str())
                .collect();
            let suffix = if dry { " (dry run)" } else { "" };
            rows.push([
                it.document.content.name(),
                format!("{}{suffix}", it.outcome.word()),
                or_dash(&fields.join(", ")),
            ]);
        }
        rows.render()
    })
}

async fn export(client: &mut Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let mut all: Vec<Value> = sources(client)
        .await?
        .iter()
        .map(documents::of_source)
        .collect();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            source: String::new(),
            page_size: PAGE_SIZE,
            page_token: page_token.clone(),
        };
        let page = client
            .call(request, async |mut s, r| s.list_entries(r).await)
            .await?;
        let entries = page.entries.into_iter().filter_map(|it| it.entry);
        for entry in entries.filter(|entry| entry.pinned) {
            let key = entry.key.unwrap_or_default();
            let query = if key.query.is_empty() {
                String::new()
            } else {
                format!("?{}", key.query)
            };
            let entry = format!("{}/{}{query}", key.source, key.path);
            all.push(json!({ "kind": "Pin", "entry": entry }));
        }
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            break;
        }
        page_token = page.next_page_token;
    }
    let text = super::output::yaml_documents(&all)?;
    printer.result(&Value::Array(all), || text)
}
