//! Checks the certificate files that a connection to PostgreSQL uses, before anything connects.
//! sqlx reports no error for a file that holds no certificate, and for a missing file it does not
//! say which file that is.

use sea_orm::sqlx::postgres::PgSslMode;
use url::Url;

/// Where a file is named: in members of the URL, of which the last counts, or else in the
/// environment.
struct Named {
    members: [&'static str; 3],
    variable: &'static str,
    /// What such a file holds.
    holds: &'static str,
    what: &'static str,
}

const AUTHORITY: Named = Named {
    members: ["sslrootcert", "ssl-root-cert", "ssl-ca"],
    variable: "PGSSLROOTCERT",
    holds: "-----BEGIN CERTIFICATE-----",
    what: "certificate",
};
const CERTIFICATE: Named = Named {
    members: ["sslcert", "ssl-cert", "sslcert"],
    variable: "PGSSLCERT",
    ..AUTHORITY
};
const KEY: Named = Named {
    members: ["sslkey", "ssl-key", "sslkey"],
    variable: "PGSSLKEY",
    holds: "PRIVATE KEY-----",
    what: "private key",
};

impl Named {
    /// The name of the setting, and the file or the text itself.
    fn found(
        &self,
        url: &Url,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Option<(String, String)> {
        let members = url.query_pairs();
        let members = members.filter(|(name, _)| self.members.contains(&name.as_ref()));
        let member = members.last();
        let member = member.map(|(name, value)| (name.into_owned(), value.into_owned()));
        member.or_else(|| Some((self.variable.to_owned(), environment(self.variable)?)))
    }

    fn check(&self, name: &str, value: &str) -> Result<(), String> {
        // sqlx reads such a value as the text itself.
        if value.trim().starts_with("-----BEGIN") {
            return self.judge(name, "the text", value);
        }
        let text = std::fs::read(value)
            .map_err(|error| format!("{name} names {value}, which can't be read: {error}"))?;
        self.judge(name, value, &String::from_utf8_lossy(&text))
    }

    fn judge(&self, name: &str, value: &str, text: &str) -> Result<(), String> {
        if text.contains(self.holds) {
            return Ok(());
        }
        let what = self.what;
        Err(format!(
            "{name} names {value}, which holds no {what} in PEM form"
        ))
    }
}

/// Checks every file that is named. Returns the setting that names authorities, if there is one
/// that `mode` does not use.
///
/// # Errors
/// A text that says which file is wrong, and why.
pub(crate) fn check(
    url: &str,
    mode: PgSslMode,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    let mut unused = None;
    for named in [AUTHORITY, CERTIFICATE, KEY] {
        let Some((name, value)) = named.found(&url, &environment) else {
            continue;
        };
        named.check(&name, &value)?;
        if named.variable == AUTHORITY.variable
            && !matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
        {
            unused = Some(name);
        }
    }
    Ok(unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn checked(query: &str, variable: Option<(&str, &str)>) -> Result<Option<String>, String> {
        let url = format!("postgres://u@h/d?{query}");
        let environment = |name: &str| {
            let (known, value) = variable?;
            (known == name).then(|| value.to_owned())
        };
        check(&url, PgSslMode::VerifyFull, environment)
    }

    #[test]
    fn each_file_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (good, empty, none) = (
            dir.path().join("good.pem"),
            dir.path().join("empty.pem"),
            dir.path().join("none.pem"),
        );
        std::fs::write(&good, PEM).unwrap();
        std::fs::write(&empty, "").unwrap();
        let [good, empty, none] = [&good, &empty, &none].map(|path| path.to_str().unwrap());
        assert_eq!(checked("", None), Ok(None));
        assert_eq!(checked(&format!("sslrootcert={good}"), None), Ok(None));
        assert_eq!(
            checked(&format!("sslrootcert={none}&ssl-ca={good}"), None),
            Ok(None)
        );
        for (query, variable) in [
            (format!("sslrootcert={none}"), None),
            (format!("sslrootcert={good}&ssl-ca={empty}"), None),
            (format!("sslcert={empty}"), None),
            // A certificate where a key is expected.
            (format!("sslkey={good}"), None),
            (String::new(), Some(("PGSSLROOTCERT", empty))),
            (String::new(), Some(("PGSSLKEY", none))),
        ] {
            assert!(checked(&query, variable).is_err(), "{query} {variable:?}");
        }
        assert_eq!(
            checked(
                &format!("sslrootcert={good}"),
                Some(("PGSSLROOTCERT", none))
            ),
            Ok(None),
            "the URL counts"
        );
        assert_eq!(checked("", Some(("PGSSLROOTCERT", PEM))), Ok(None));
    }

    #[test]
    fn an_authority_that_nobody_is_judged_by_is_told() {
        let url = "postgres://u@h/d";
        let environment = |name: &str| (name == "PGSSLROOTCERT").then(|| PEM.to_owned());
        let told = check(url, PgSslMode::Require, environment);
        assert_eq!(told, Ok(Some("PGSSLROOTCERT".to_owned())));
        assert_eq!(check(url, PgSslMode::Require, |_| None), Ok(None));
    }
}
