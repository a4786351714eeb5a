//! People over JSON: how they get in, their sessions, their memberships.
//!
//! Tests are named after the rows of the list of attacks on sign-in: M mail and passwords,
//! S sessions, R and I members and invitations, U the audit log.

mod lifecycle;
mod mailed;
mod members;
mod sessions;

use serde_json::Value;
use tests::{Server, SmtpSink, World, people_settings};

/// A password that nobody has guessed yet.
const PASSWORD: &str = "correct horse battery staple 7";
const ANOTHER: &str = "a wholly different phrase 8";

/// A server whose people get mail, and the mails; `None`, after a skip, without a mail server.
async fn start(world: &World, more: &[(&str, &str)]) -> Option<(Server, SmtpSink)> {
    let sink = SmtpSink::start("people").await?;
    let settings = people_settings(&sink);
    let mut env: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    env.extend(more);
    Some((world.start_with(&env).await, sink))
}

/// Lets a quarter of an hour pass for whoever asked for mails, or failed.
async fn forgive(server: &Server) {
    server.site().execute("DELETE FROM sign_in_throttles").await;
}

/// Lets ten minutes pass since everybody signed in. The server is started again, since it keeps in
/// memory when that was.
async fn sign_ins_get_old(server: &Server, env: &[(&str, &str)]) -> Server {
    let ago = "UPDATE sessions SET authenticated_at = authenticated_at - 600000";
    server.site().execute(ago).await;
    server.restart(env).await
}

/// The actions of the operator's audit log, newest first.
async fn actions(server: &Server) -> Vec<Value> {
    server.operator().all("/v1/audit").await
}
