//! Slack messages about trains: their texts, and the JSON that Slack's webhooks accept.

use std::time::Duration;

use serde_json::json;

use crate::clock::Timestamp;

/// An older message is not sent any more: it would alarm people about what is long over.
pub const STALE_AFTER: Duration = Duration::from_hours(24);

/// Formats a name as code in Slack's mrkdwn.
///
/// The three control characters become entities, so that a name can't mention people or contain a
/// link (Slack's documentation, "Formatting text for app surfaces", "Escaping text"). Characters
/// that would end the code or the line are replaced.
#[must_use]
pub fn code(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('`');
    for one in name.chars() {
        match one {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '`' => text.push('\''),
            _ if one.is_control() => text.push(' '),
            _ => text.push(one),
        }
    }
    text.push('`');
    text
}

/// The message that no account of a train is usable, until `usable_at` if that is known.
#[must_use]
pub fn train_exhausted(train: &str, usable_at: Option<Timestamp>) -> String {
    let train = code(train);
    let until = match usable_at {
        Some(at) => format!("The first of its accounts is expected back at {at}."),
        None => "None of its accounts comes back by itself.".to_owned(),
    };
    format!(
        "Train {train} is exhausted: none of its accounts can be used now, and its clients are refused. \
         {until} To help it sooner, map another account to it, or repair those that failed."
    )
}

/// The message that an account of a train can't be refreshed any more, and until when it is still
/// lent. `reason` is one of the fixed words of [`crate::upstream::TokenError`].
#[must_use]
pub fn refresh_failed(
    account: &str,
    train: &str,
    reason: &str,
    lent_until: Option<Timestamp>,
) -> String {
    let (account, train, reason) = (code(account), code(train), code(reason));
    let until = lent_until.map_or_else(String::new, |at| {
        format!(" Its access token is still used until {at}.")
    });
    let then = if until.is_empty() { "" } else { " then" };
    format!(
        "Account {account} of train {train} can't be refreshed any more ({reason}).{until} The train \
         goes on{then} with its other accounts, if it has any. Log in again, or replace the account."
    )
}

/// The body of a request to an incoming webhook of Slack.
#[must_use]
pub fn payload(message: &str, channel: Option<&str>) -> String {
    let mut body = json!({"text": message});
    if let Some(channel) = channel {
        body["channel"] = channel.into();
    }
    body.to_string()
}

/// Whether an answer with this status means that no further try can help: the webhook does not
/// exist any more, or its channel is archived.
#[must_use]
pub const fn is_final(status: u16) -> bool {
    matches!(status, 404 | 410)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_can_neither_mention_nor_link_nor_break_out() {
        for (name, text) in [
            ("nightly", "`nightly`"),
            ("a & b", "`a &amp; b`"),
            ("<!channel>", "`&lt;!channel&gt;`"),
            (
                "<https://evil.example|x>",
                "`&lt;https://evil.example|x&gt;`",
            ),
            ("a`b\nc\u{7f}", "`a'b c `"),
            ("&lt;", "`&amp;lt;`"),
            ("Zürich", "`Zürich`"),
        ] {
            assert_eq!(code(name), text);
        }
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_place(name: String) {
            let text = code(&name);
            let inner = &text[1..text.len() - 1];
            prop_assert!(!inner.contains(['<', '>', '`', '\n', '\r']), "{}", text);
            let entities = inner.matches("&amp;").count() + inner.matches("&lt;").count()
                + inner.matches("&gt;").count();
            prop_assert_eq!(inner.matches('&').count(), entities);
        }
    }

    #[test]
    fn messages_say_what_happened_to_whom_and_what_to_do() {
        let at = Timestamp::parse("2027-05-05T12:00:00Z").unwrap();
        let text = train_exhausted("night&day", Some(at));
        assert!(text.contains("`night&amp;day`") && text.contains("2027-05-05T12:00:00"));
        assert!(text.contains("map another account"), "{text}");
        assert!(train_exhausted("x", None).contains("by itself"));
        let text = refresh_failed("main <prod>", "gateway", "invalid_grant", Some(at));
        assert!(text.contains("still used until 2027-05-05T12:00:00"));
        let text = refresh_failed("main <prod>", "gateway", "invalid_grant", None);
        assert!(!text.contains("until"), "{text}");
        assert!(text.contains("`main &lt;prod&gt;`") && text.contains("`gateway`"));
        assert!(
            text.contains("(`invalid_grant`)") && text.contains("Log in again"),
            "{text}"
        );
    }

    #[test]
    fn a_payload_names_its_channel_only_if_there_is_one() {
        assert_eq!(payload("a \"b\"", None), r#"{"text":"a \"b\""}"#);
        let read: serde_json::Value = serde_json::from_str(&payload("a", Some("#ops"))).unwrap();
        assert_eq!(read, json!({"text": "a", "channel": "#ops"}));
    }
}
