//! Trains: the kinds of notices about them, and the sealing of their Slack webhooks.

use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use crate::words;
use crate::{
    id::{Id as _, PublisherId, TrainId},
    seal::{Key, SealContext, SealError},
};

words! {
    /// The kind of a notice about a train.
    #[derive(PartialOrd, Ord)]
    pub enum NoticeKind {
        /// An account of the train can't be refreshed any more.
        AccountRefreshFailed = "account.refresh_failed",
        /// No account of the train is usable.
        TrainExhausted = "train.exhausted",
    }
}

fn seal_context(publisher: Uuid, train: &Uuid) -> SealContext<'_> {
    SealContext {
        owner: publisher,
        table: "trains",
        row: train.as_bytes(),
        column: "slack_webhook",
    }
}

/// Seals the Slack webhook URL of a train. The URL is a secret: whoever knows it can send messages.
#[must_use]
pub fn seal_webhook(
    key: &Key,
    publisher: PublisherId,
    train: TrainId,
    url: &SecretString,
) -> Vec<u8> {
    let text = url.expose_secret().as_bytes();
    key.seal(&seal_context(publisher.uuid(), &train.uuid()), text)
}

/// Opens what [`seal_webhook`] made for the same train.
///
/// # Errors
/// [`SealError`] for another key or train, or changed bytes.
pub fn open_webhook(
    key: &Key,
    publisher: PublisherId,
    train: TrainId,
    sealed: &[u8],
) -> Result<SecretString, SealError> {
    let plain = key.open(&seal_context(publisher.uuid(), &train.uuid()), sealed)?;
    let text = std::str::from_utf8(&plain).map_err(|_| SealError)?;
    Ok(SecretString::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn a_webhook_opens_for_its_own_train_alone() {
        let now = Timestamp::from_ms(1);
        let (publisher, train) = (PublisherId::generate(now), TrainId::generate(now));
        let key = Key::generate();
        let url = SecretString::from("https://hooks.slack.example/T/B/x".to_owned());
        let sealed = seal_webhook(&key, publisher, train, &url);
        let opened = open_webhook(&key, publisher, train, &sealed).unwrap();
        assert_eq!(opened.expose_secret(), url.expose_secret());
        let other = TrainId::generate(now);
        assert!(open_webhook(&key, publisher, other, &sealed).is_err());
        let other = PublisherId::generate(now);
        assert!(open_webhook(&key, other, train, &sealed).is_err());
    }

    #[test]
    fn words_parse_back() {
        for notice in NoticeKind::ALL {
            assert_eq!(NoticeKind::parse(notice.as_str()), Some(notice));
        }
        assert_eq!(NoticeKind::parse("train.created"), None);
    }
}
