//! Links for those who can't sign in by themselves: for a new password, and from the operator.

use std::time::Duration;

use domain::{
    Code,
    audit::Action,
    id::UserId,
    people::{EmailAddress, Purpose},
    token::{self, Prefix, TokenHash},
};
use persistence::{Context, NewToken, Refusal, StoreError, User};
use secrecy::SecretString;

use crate::{
    Service, mails, passwords,
    service::problem_of,
    sign_in::{LinkKind, asked_from, link_hash, mail},
};

/// How long a link for a new password is good.
const RESET_LASTS: Duration = Duration::from_hours(1);
/// How long a link that the operator made is good.
const OPERATOR_LINK_LASTS: Duration = Duration::from_hours(24);

impl Service {
    /// Mails a link for a new password, if a user has the address.
    ///
    /// # Errors
    /// 429 `rate_limited`; `not_found` if people have no passwords here.
    pub async fn request_reset(
        &self,
        context: &Context,
        address: &EmailAddress,
    ) -> Result<(), StoreError> {
        self.need_passwords()?;
        let text = token::generate(Prefix::Link);
        let token = |user: Option<UserId>| NewToken {
            hash: TokenHash::of_secret(&text),
            purpose: Purpose::Reset,
            user,
            address: Some(address.clone()),
            browser: None,
            code: None,
            payload: None,
            lasts: RESET_LASTS,
        };
        let words = mails::password_reset(&mails::PasswordReset {
            site: self.site(),
            link: &self.link("/reset-password", &text),
            valid_for: RESET_LASTS,
            asked_from: Some(asked_from(context)),
        });
        let mail = |_: Option<&User>| mail("reset", address, words.clone(), RESET_LASTS);
        let sends = |user: Option<&User>| user.is_some_and(User::is_enabled);
        let parts = (&token as _, &mail as _, &sends as _);
        self.request(context, address, Action::PasswordResetRequested, parts)
            .await
    }

    /// Sets a new password by a mailed link. The password is judged before the link is used. All
    /// sessions of the user end.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`; `validation_failed`; 503 `overloaded`.
    pub async fn reset_password(
        &self,
        context: &Context,
        text: &str,
        password: &SecretString,
    ) -> Result<User, StoreError> {
        self.need_passwords()?;
        let opened = self.open_link(text, None).await?;
        if opened.kind != LinkKind::Reset {
            return Err(Code::LinkInvalid.into());
        }
        passwords::judge(password, &opened.address, "/password")?;
        let hash = self.hasher.hash(password).await?;
        let notice = |user: &User| self.password_notice(context, &user.address);
        let done = self
            .store
            .identity()
            .reset_password(context, &link_hash(text)?, &hash, &notice)
            .await?;
        let user = done.map_err(|fault| problem_of(Refusal::Token(fault)))?;
        self.store
            .identity()
            .forgive(&self.failures_for(&user.address).0)
            .await?;
        Ok(user)
    }

    /// A link for a user that the operator passes on.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn operator_link(
        &self,
        context: &Context,
        user: UserId,
    ) -> Result<String, StoreError> {
        let text = token::generate(Prefix::Link);
        let token = NewToken {
            hash: TokenHash::of_secret(&text),
            purpose: Purpose::OperatorSignIn,
            user: Some(user),
            address: None,
            browser: None,
            code: None,
            payload: None,
            lasts: OPERATOR_LINK_LASTS,
        };
        let identity = self.store.identity();
        identity.issue_operator_link(context, user, &token).await?;
        Ok(self.link("/sign-in/confirm", &text))
    }
}
