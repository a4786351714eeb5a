//! The four kinds of credentials, and what each allows.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::SecretString;

use crate::words;
use crate::{random, token};

words! {
    /// The kind of a credential: two tokens and two secrets, all rotated by one API.
    #[derive(PartialOrd, Ord)]
    pub enum CredentialKind {
        /// A token that allows everything within its publisher.
        Admin = "admin",
        /// A token that allows to start, claim and finish runs.
        Runner = "runner",
        /// The secret that signs webhooks.
        WebhookSigning = "webhook_signing",
        /// The bearer that subcommand calls carry.
        SubcommandBearer = "subcommand_bearer",
    }
}

impl CredentialKind {
    /// Whether it is a token, which is stored as a hash; secrets are stored sealed.
    #[must_use]
    pub const fn is_token(self) -> bool {
        matches!(self, Self::Admin | Self::Runner)
    }

    /// Generates a credential of this kind.
    ///
    /// A webhook secret is 33 random bytes: within Standard Webhooks' 24 to 64, and without base64
    /// padding, which some published verifiers drop.
    #[must_use]
    pub fn generate(self) -> SecretString {
        match self {
            Self::Admin => token::generate(token::Prefix::Admin),
            Self::Runner => token::generate(token::Prefix::Runner),
            Self::SubcommandBearer => token::generate(token::Prefix::SubcommandBearer),
            Self::WebhookSigning => {
                SecretString::from(format!("whsec_{}", STANDARD.encode(random::bytes::<33>())))
            }
        }
    }
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rights of a token. A legacy token may have both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Everything within its publisher.
    pub admin: bool,
    /// Starting, claiming and finishing runs.
    pub runner: bool,
}

impl Grants {
    /// The rights of a token of one kind; none for a secret.
    #[must_use]
    pub const fn of(kind: CredentialKind) -> Self {
        Self {
            admin: matches!(kind, CredentialKind::Admin),
            runner: matches!(kind, CredentialKind::Runner),
        }
    }

    /// Whether the right of this kind of token is included.
    #[must_use]
    pub const fn has(self, kind: CredentialKind) -> bool {
        match kind {
            CredentialKind::Admin => self.admin,
            CredentialKind::Runner => self.runner,
            CredentialKind::WebhookSigning | CredentialKind::SubcommandBearer => false,
        }
    }

    /// The same rights without that of `kind`.
    #[must_use]
    pub const fn without(self, kind: CredentialKind) -> Self {
        Self {
            admin: self.admin && !matches!(kind, CredentialKind::Admin),
            runner: self.runner && !matches!(kind, CredentialKind::Runner),
        }
    }

    /// Whether there are no rights.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        !self.admin && !self.runner
    }

    /// The kinds of token whose rights are included.
    #[must_use]
    pub fn kinds(self) -> Vec<CredentialKind> {
        CredentialKind::ALL
            .into_iter()
            .filter(|kind| self.has(*kind))
            .collect()
    }
}

words! {
    /// How a credential was created.
    pub enum Source {
        /// Together with its publisher.
        Bootstrap = "bootstrap",
        /// Created or rotated by the API.
        Api = "api",
        /// By the legacy token of the configuration.
        Seed = "seed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn webhook_secrets_have_the_standard_form_without_padding() {
        let secret = CredentialKind::WebhookSigning.generate();
        let encoded = secret.expose_secret().strip_prefix("whsec_").unwrap();
        assert!(!encoded.contains('='));
        assert_eq!(STANDARD.decode(encoded).unwrap().len(), 33);
    }

    #[test]
    fn words_parse_back() {
        for kind in CredentialKind::ALL {
            assert_eq!(CredentialKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(CredentialKind::parse("Admin"), None);
    }
}
