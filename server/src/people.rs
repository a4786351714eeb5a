//! What the settings about people come to: whether people can sign in, at which origin, and how
//! mails leave.

use std::{net::SocketAddr, time::Duration};

use dispatcher::{MAIL_TIME_MAX, Outgoing};
use outbound::mail::Mailer;

use crate::config::{Config, PublicUrl};

/// The settings about people, seen together.
pub(crate) struct People {
    /// Where browsers reach the server; `None` if people can't sign in.
    url: Option<PublicUrl>,
    mail_server: bool,
}

impl People {
    /// For a server that listens on `bound`. That address may differ from the configured one, which
    /// may leave the port to the system.
    pub(crate) fn of(config: &Config, bound: SocketAddr) -> Self {
        let by_address = || {
            let own = bound.ip().is_loopback() && bound.port() != 0;
            own.then(|| PublicUrl::of_loopback(bound))?
        };
        Self {
            url: config.public_url.clone().or_else(by_address),
            mail_server: config.smtp_url.is_some(),
        }
    }

    /// Whether mails are only logged. Everybody who reads the log could sign in as anybody, so this
    /// is for a server that nobody else reaches.
    fn logs_mails(&self) -> bool {
        !self.mail_server && self.url.as_ref().is_some_and(|url| url.is_loopback)
    }

    /// The settings of the service that lets people in.
    pub(crate) fn settings(&self, config: &Config) -> identity::Settings {
        let Some(url) = &self.url else {
            return identity::Settings::off();
        };
        let minutes = |count: u32| Duration::from_mins(u64::from(count));
        identity::Settings {
            mail: self.mail_server || self.logs_mails(),
            registration: config.registration,
            passwords: config.passwords,
            provision_publisher: config.provision_publisher,
            link_lasts: minutes(config.link_minutes),
            idle: minutes(config.session_idle_minutes),
            lasts: Duration::from_hours(u64::from(config.session_days) * 24),
            session_key: config.session_key.clone(),
            ..identity::Settings::new(url.origin.clone())
        }
    }

    /// How mails leave this process.
    ///
    /// # Errors
    /// The certificates for the mail server can't be read.
    pub(crate) fn outgoing(&self, config: &Config) -> Result<Outgoing, String> {
        let (Some(url), Some(server), Some(from)) =
            (&self.url, &config.smtp_url, &config.mail_from)
        else {
            return Ok(if self.logs_mails() {
                Outgoing::Log
            } else {
                Outgoing::Off
            });
        };
        let mailer = Mailer::new(server.clone(), from.clone(), &url.host)
            .map_err(|error| format!("STATIONMASTER_SMTP_URL: {error}"))?;
        Ok(Outgoing::Smtp(Box::new(
            mailer.with_time_max(MAIL_TIME_MAX),
        )))
    }

    /// Logs at the start what the operator may not expect, and how the first person gets in if the
    /// database is new.
    pub(crate) fn tell(&self, new_database: bool) {
        let Some(url) = &self.url else {
            tracing::info!(
                "People can't sign in: STATIONMASTER_PUBLIC_URL is not set, and the server does not listen on a loopback address"
            );
            return;
        };
        let origin = &url.origin;
        if url.was_trimmed {
            tracing::warn!(%origin, "The slash at the end of STATIONMASTER_PUBLIC_URL was removed");
        }
        if self.logs_mails() {
            tracing::info!(%origin, "There is no mail server (STATIONMASTER_SMTP_URL), so mails to people, and the links in them, go to this log");
        } else if !self.mail_server {
            tracing::warn!(%origin, "There is no mail server (STATIONMASTER_SMTP_URL), so nobody can sign in by mail");
        }
        if new_database {
            tracing::info!(
                "There is no user yet. `stationmaster users create EMAIL --staff` creates the first one and prints a link to sign in"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn config(given: &[(&str, &str)]) -> Config {
        let given = given
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        load(given, None)
            .unwrap_or_else(|faults| panic!("{faults}"))
            .config
    }

    fn people(given: &[(&str, &str)], bound: &str) -> (identity::Settings, Outgoing) {
        let config = config(given);
        let people = People::of(&config, bound.parse().unwrap());
        (people.settings(&config), people.outgoing(&config).unwrap())
    }

    const SMTP: [(&str, &str); 2] = [
        ("STATIONMASTER_SMTP_URL", "smtp://127.0.0.1:25?tls=none"),
        ("STATIONMASTER_MAIL_FROM", "Mail <mail@sm.example.com>"),
    ];
    const PUBLIC: (&str, &str) = ("STATIONMASTER_PUBLIC_URL", "https://sm.example.com/");

    #[test]
    fn a_loopback_address_is_an_origin_and_its_mails_are_logged() {
        for (bound, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("127.0.0.1:80", "http://127.0.0.1"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            let (settings, outgoing) = people(&[], bound);
            assert!(settings.enabled && settings.mail, "{bound}");
            assert_eq!(settings.public_origin, origin);
            assert!(matches!(outgoing, Outgoing::Log), "{bound}");
        }
    }

    #[test]
    fn without_a_public_url_elsewhere_people_are_off() {
        for bound in ["0.0.0.0:8080", "192.0.2.1:8080", "127.0.0.1:0"] {
            let (settings, outgoing) = people(&SMTP, bound);
            assert!(!settings.enabled && !settings.mail, "{bound}");
            assert!(matches!(outgoing, Outgoing::Off), "{bound}");
        }
    }

    #[test]
    fn a_public_url_needs_a_mail_server_for_mails() {
        let (settings, outgoing) = people(&[PUBLIC], "127.0.0.1:8080");
        assert!(settings.enabled && !settings.mail);
        assert_eq!(settings.public_origin, "https://sm.example.com");
        assert!(matches!(outgoing, Outgoing::Off));
        let given = [PUBLIC, SMTP[0], SMTP[1]];
        let (settings, outgoing) = people(&given, "0.0.0.0:8080");
        assert!(settings.enabled && settings.mail);
        assert!(matches!(outgoing, Outgoing::Smtp(_)));
    }

    #[test]
    fn the_settings_reach_the_service() {
        let (settings, _) = people(
            &[
                ("STATIONMASTER_REGISTRATION", "open"),
                ("STATIONMASTER_PASSWORDS", "on"),
                ("STATIONMASTER_PROVISION_PUBLISHER", "true"),
                ("STATIONMASTER_LINK_MINUTES", "5"),
                ("STATIONMASTER_SESSION_IDLE_MINUTES", "30"),
                ("STATIONMASTER_SESSION_DAYS", "2"),
                (
                    "STATIONMASTER_SESSION_KEY",
                    "0123456789abcdef0123456789abcdef",
                ),
            ],
            "127.0.0.1:8080",
        );
        assert_eq!(settings.registration, identity::Registration::Open);
        assert!(settings.passwords && settings.provision_publisher);
        assert_eq!(settings.link_lasts, Duration::from_mins(5));
        assert_eq!(settings.idle, Duration::from_mins(30));
        assert_eq!(settings.lasts, Duration::from_hours(48));
        assert!(settings.session_key.is_some());
    }
}
