//! Trains: what is told of them, and where.

use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use crate::{
    id::{Id as _, PublisherId, TrainId},
    seal::{Key, SealContext, SealError},
};

/// What a train's people may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// An account of the train can't be refreshed any more.
    AccountRefreshFailed,
    /// No account of the train is usable.
    TrainExhausted,
}

impl Notice {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AccountRefreshFailed, Self::TrainExhausted];

    /// The word in answers and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccountRefreshFailed => "account.refresh_failed",
            Self::TrainExhausted => "train.exhausted",
        }
    }

    /// The one that a word names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
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

/// Seals the URL that messages to Slack are sent to, for its train alone: whoever knows it may send.
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
/// [`SealError`] for another key, train, or bytes.
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
        for notice in Notice::ALL {
            assert_eq!(Notice::parse(notice.as_str()), Some(notice));
        }
        assert_eq!(Notice::parse("train.created"), None);
    }
}
