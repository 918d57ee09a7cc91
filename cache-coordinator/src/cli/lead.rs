//! `step-down`: a planned change of the leader.

use chunkcache_proto::v1::StepDownRequest;
use clap::Command;
use serde_json::json;

use super::connection::Client;
use super::failure::CliError;
use super::output::Printer;

pub(super) fn command() -> Command {
    Command::new("step-down")
        .about("The leader gives up its lease; a standby takes over within a second")
        .after_help(
            "Asked of a standby, it is the leader that steps down. Without a standby the same \
             coordinator leads again after two seconds.",
        )
}

pub(super) async fn run(client: &mut Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    client
        .call(StepDownRequest {}, async |mut s, r| s.step_down(r).await)
        .await?;
    let former = client.endpoint().to_owned();
    printer.result(&json!({ "name": former }), || {
        format!("{former} no longer leads\n")
    })
}
