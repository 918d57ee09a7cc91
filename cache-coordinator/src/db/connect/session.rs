//! Sets up each session, and checks that it is a real one: a pooler may give a client another
//! server connection for each transaction.

use std::time::Duration;

use tokio_postgres::Client;

use super::super::DatabaseError;

/// Sets the time-outs, and makes the server plan each statement once, by its indexes, as the
/// contract tests show. A plan made while a table is small and without statistics would read the
/// whole table, and be kept while it grows; and planning a look-up anew takes ten times as long as
/// the look-up.
///
/// Uses statements instead of start-up options, which poolers refuse or silently ignore. Resets
/// settings of the role or the database that would change the meaning of statements, or end
/// sessions and statements. Refuses a read-only server: it was demoted, or is not promoted yet.
pub async fn prepare_session(
    client: &Client,
    statement_timeout: Duration,
    idle_in_transaction: Duration,
) -> Result<(), DatabaseError> {
    // Notices ("already exists, skipping") would otherwise be logged as our own information.
    client
        .batch_execute(&format!(
            "SET client_min_messages = warning; SET statement_timeout = {}; \
             SET idle_in_transaction_session_timeout = {}; SET enable_seqscan = off; \
             SET plan_cache_mode = force_generic_plan; SET jit = off; \
             SET standard_conforming_strings = on; SET lock_timeout = 0; \
             SET idle_session_timeout = 0; SET default_transaction_isolation = 'read committed'",
            statement_timeout.as_millis(),
            idle_in_transaction.as_millis(),
        ))
        .await?;
    if first_value(client, "SELECT pg_is_in_recovery()").await? == "t" {
        return Err(DatabaseError::unavailable(
            "the server is a standby that only reads",
        ));
    }
    Ok(())
}

/// Detects transaction or statement pooling: two open connections share a server connection, or one
/// of them does not keep its own. Time-outs and prepared statements do not work there. Returns the
/// reason for a refusal, if there is one.
pub async fn find_pooler(one: &Client, other: &Client) -> Result<Option<String>, DatabaseError> {
    const ROUNDS: usize = 3;
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ones.push(backend(one).await?);
        others.push(backend(other).await?);
    }
    let keeps = |list: &[String]| list.windows(2).all(|pair| pair[0] == pair[1]);
    if keeps(&ones) && keeps(&others) && ones[0] != others[0] {
        return Ok(None);
    }
    Ok(Some(
        "a pooler gives each transaction another server connection (PgBouncer's \
         pool_mode=transaction or statement), and neither time-outs nor prepared statements hold \
         there: set pool_mode=session for this database, or connect to PostgreSQL directly"
            .to_owned(),
    ))
}

async fn backend(client: &Client) -> Result<String, DatabaseError> {
    first_value(client, "SELECT pg_backend_pid()").await
}

/// Uses the simple protocol, which prepares nothing.
async fn first_value(client: &Client, statement: &str) -> Result<String, DatabaseError> {
    let messages = client.simple_query(statement).await?;
    let value = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    value
        .map(str::to_owned)
        .ok_or_else(|| DatabaseError::Internal(format!("{statement} answered no row")))
}
