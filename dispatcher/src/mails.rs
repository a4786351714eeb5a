//! Sends mails to people: claims those that are due, hands them to the mail server, and records the
//! outcomes.
//!
//! Mails are few, and people wait for them, so they have a loop of their own beside deliveries and
//! Slack messages. It keeps the same rules: no database connection is held while a mail is sent,
//! and store work is never cancelled. A mail holds a link that lets its reader in. Nothing of it is
//! ever logged, unless the operator of a server on this machine has no mail server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Timestamp, progress::Part, retry::Schedule};
use outbound::mail::{Mail, MailError, Mailer};
use persistence::{DueMail, Mails, NewMail, Store};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Most mails under way in this process. Each has a connection of its own to the mail server.
const IN_FLIGHT_MAX: u32 = 4;
/// How long a claim holds.
const LEASE: Duration = Duration::from_mins(1);
/// A mail that is not begun within this after its claim is left for the next claim.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// How long a mail server may take for a mail. A stop waits longer than that for what is under way.
pub const MAIL_TIME_MAX: Duration = Duration::from_secs(15);
/// The limit of a whole attempt: it ends even if the limit above does not.
const DEADLINE: Duration = Duration::from_secs(20);
/// The shortest pause before the next claim, and the pause before an outcome is recorded again,
/// after the store failed or another process was first.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a mail is given up, if the mail server did not say it.
const UNREADABLE: &str = "the stored mail can't be decrypted or read";
const EXPIRED: &str = "its link is too old";
const OFF: &str = "no mail server is configured";
const LATE: &str = "the mail server took too long";

/// How mails leave this process.
pub enum Outgoing {
    /// They are handed to the operator's mail server.
    Smtp(Box<Mailer>),
    /// Their text is logged. Only for a server that nobody but its operator's machine reaches.
    Log,
    /// Not at all: each is given up.
    Off,
}

/// The loop that claims mails and starts their tasks.
pub(crate) struct MailSender {
    store: Store,
    outgoing: Arc<Outgoing>,
    schedule: Schedule,
    poll: Duration,
    part: Part,
    under_way: JoinSet<()>,
}

impl MailSender {
    pub(crate) fn new(
        store: Store,
        outgoing: Outgoing,
        schedule: Schedule,
        poll: Duration,
    ) -> Self {
        Self {
            part: store.progress().part("mails"),
            store,
            outgoing: Arc::new(outgoing),
            schedule,
            poll,
            under_way: JoinSet::new(),
        }
    }

    /// Runs until `stop`, and then until the mails under way are recorded.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.look().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.store.mails_written() => {}
                Some(ended) = self.under_way.join_next() => report(ended),
                () = tokio::time::sleep(pause) => {}
            }
        }
        while let Some(ended) = self.under_way.join_next().await {
            report(ended);
        }
    }

    /// Claims the due mails and starts them; returns how long to wait before the next claim.
    async fn look(&mut self) -> Duration {
        let under_way = u32::try_from(self.under_way.len()).unwrap_or(u32::MAX);
        let room = IN_FLIGHT_MAX.saturating_sub(under_way);
        if room == 0 {
            return self.poll;
        }
        let (began, identity) = (Instant::now(), self.store.identity());
        // In a task of its own, so that a panic ends this claim and not the loop.
        let look = async move { identity.claim_mails(room, LEASE).await };
        let working = self.part.work();
        let found = tokio::spawn(look).await;
        // Reported before `working` is dropped: a failed search is no progress.
        let was_failing = self.part.standing().failing;
        self.part.went(matches!(found, Ok(Ok(_))));
        drop(working);
        match found {
            Ok(Ok(found)) => self.start(found, began),
            Ok(Err(error)) => {
                if !was_failing {
                    tracing::warn!(%error, "mails wait for the store");
                }
                self.poll.max(PAUSE)
            }
            Err(error) => {
                tracing::error!(%error, "the search for mails panicked");
                self.poll.max(PAUSE)
            }
        }
    }

    fn start(&mut self, found: Mails, began: Instant) -> Duration {
        let none = found.claimed.is_empty();
        for due in found.claimed {
            let (store, outgoing) = (self.store.clone(), Arc::clone(&self.outgoing));
            let send = send(store, outgoing, self.schedule.clone(), due, began);
            self.under_way.spawn(send);
        }
        match found.next {
            // There may be more than were claimed.
            _ if !none => Duration::ZERO,
            Some(at) => at
                .since(self.store.now())
                .clamp(PAUSE, self.poll.max(PAUSE)),
            None => self.poll,
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a mail's attempt panicked");
    }
}

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The mail server has the mail.
    Sent,
    /// It is tried again at this time.
    Later(String, Timestamp),
    /// It is not tried again.
    GivenUp(String),
}

/// Makes one attempt, and records what became of it.
async fn send(
    store: Store,
    outgoing: Arc<Outgoing>,
    schedule: Schedule,
    due: DueMail,
    claimed: Instant,
) {
    // The process may have been suspended since.
    if claimed.elapsed() > BEGIN_WITHIN {
        return;
    }
    let sent = attempt(&store, &outgoing, &due).await;
    let outcome = outcome(sent, &schedule, &due, store.now());
    measure(&due, &outcome);
    let (error, retry_at) = match &outcome {
        Outcome::Sent => (None, None),
        Outcome::Later(error, at) => (Some(error.as_str()), Some(*at)),
        Outcome::GivenUp(error) => (Some(error.as_str()), None),
    };
    while let Err(error) = store.identity().record_mail(&due, error, retry_at).await {
        let waits = error.may_pass() && claimed.elapsed() < LEASE;
        if !waits {
            tracing::warn!(mail = %due.id, %error, "the outcome of a mail could not be recorded; the mail is sent again");
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(store: &Store, outgoing: &Outgoing, due: &DueMail) -> Result<(), MailError> {
    let give_up = |why: &str| Err(MailError::Permanent(why.to_owned()));
    let Some(mail) = &due.mail else {
        return give_up(UNREADABLE);
    };
    if store.now() >= due.expires_at {
        return give_up(EXPIRED);
    }
    match outgoing {
        Outgoing::Off => give_up(OFF),
        Outgoing::Log => {
            log(due, mail);
            Ok(())
        }
        Outgoing::Smtp(mailer) => {
            let mail = Mail {
                to: mail.to.clone(),
                subject: mail.subject.clone(),
                text: mail.text.clone(),
                html: mail.html.clone(),
                message_id: due.id.to_string(),
            };
            let sent = timeout(DEADLINE, mailer.send(&mail)).await;
            sent.unwrap_or_else(|_| Err(MailError::Passing(LATE.to_owned())))
        }
    }
}

fn log(due: &DueMail, mail: &NewMail) {
    let NewMail {
        to, subject, text, ..
    } = mail;
    let kind = due.kind.as_str();
    tracing::info!(kind, %to, %subject, "no mail server is configured, so this mail is only logged:\n{text}");
}

fn outcome(
    sent: Result<(), MailError>,
    schedule: &Schedule,
    due: &DueMail,
    now: Timestamp,
) -> Outcome {
    let error = match sent {
        Ok(()) => return Outcome::Sent,
        Err(MailError::Permanent(error)) => return Outcome::GivenUp(error),
        Err(MailError::Passing(error)) => error,
    };
    // The last wait is used again and again: what ends the attempts is that the link expires.
    let made = due.attempt.min(schedule.tries().saturating_sub(1));
    match schedule.wait_after(made).map(|wait| now.plus(wait)) {
        Some(at) if at < due.expires_at => Outcome::Later(error, at),
        _ => Outcome::GivenUp(error),
    }
}

fn measure(due: &DueMail, outcome: &Outcome) {
    let (kind, mail, tries) = (due.kind.clone(), due.id, due.attempt);
    let word = match outcome {
        Outcome::Sent => "sent",
        Outcome::Later(error, _) => {
            tracing::info!(%mail, kind, %error, tries, "a mail is sent later");
            "failed"
        }
        Outcome::GivenUp(error) => {
            metrics::counter!("stationmaster_mails_given_up_total", "kind" => kind.clone())
                .increment(1);
            tracing::warn!(%mail, kind, %error, tries, "a mail is given up");
            "failed"
        }
    };
    metrics::counter!("stationmaster_mail_attempts_total", "kind" => kind, "outcome" => word)
        .increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use domain::id::{Id as _, MailId};

    fn due(attempt: u32, expires_at_s: i64) -> DueMail {
        DueMail {
            id: MailId::generate(Timestamp::from_ms(0)),
            kind: "sign_in".to_owned(),
            mail: None,
            attempt,
            expires_at: Timestamp::from_ms(expires_at_s * 1000),
        }
    }

    #[test]
    fn a_passing_failure_is_tried_again_while_the_link_is_good() {
        let (schedule, now) = (Settings::default().mails, Timestamp::from_ms(0));
        let failed = || Err(MailError::Passing("busy".to_owned()));
        for (attempt, least, most) in [(1, 8, 12), (2, 24, 36), (6, 720, 1080), (40, 720, 1080)] {
            match outcome(failed(), &schedule, &due(attempt, 86_400), now) {
                Outcome::Later(_, at) => {
                    assert!((least..=most).contains(&at.seconds()), "{attempt}: {at}");
                }
                other => panic!("{attempt}: {other:?}"),
            }
        }
        let soon = outcome(failed(), &schedule, &due(6, 600), now);
        assert_eq!(soon, Outcome::GivenUp("busy".to_owned()));
        let never = Err(MailError::Permanent("no such user".to_owned()));
        let never = outcome(never, &schedule, &due(1, 86_400), now);
        assert_eq!(never, Outcome::GivenUp("no such user".to_owned()));
        assert_eq!(outcome(Ok(()), &schedule, &due(1, 1), now), Outcome::Sent);
    }
}
