//! Invitations: what is mailed, and how it is accepted.

use domain::{
    id::InvitationId,
    people::{EmailAddress, Role, SignInMethod},
    token::{self, Prefix, TokenHash},
};
use persistence::{
    Accepted, Answer, Context, INVITATION_LASTS, Invitation, NewInvitation, NewMail, OwnInvitation,
    Principal, Refusal, Scoped, SignedIn, StoreError,
};
use secrecy::SecretString;

use crate::{NewBrowserSession, Service, mails, service::problem_of, sign_in::mail};

impl Service {
    fn invitation_mail(
        &self,
        (who, inviter): (&Principal, &str),
        (to, role): (&EmailAddress, Role),
        (message, text): (Option<&str>, &SecretString),
    ) -> NewMail {
        let words = mails::invitation(&mails::Invitation {
            site: self.site(),
            publisher: &who.publisher.display_name,
            inviter,
            role: role.as_str(),
            message,
            link: &self.link("/invitations/accept", text),
            valid_for: INVITATION_LASTS,
        });
        mail("invitation", to, words, INVITATION_LASTS)
    }

    /// How a mail calls whoever invites: a person by name or address, a token by its publisher.
    async fn inviter_name(&self, who: &Principal) -> Result<String, StoreError> {
        let user = match who.member() {
            Some(member) => self.store.identity().user(member.user).await?,
            None => None,
        };
        Ok(match user {
            Some(user) => user.display_name.unwrap_or_else(|| user.address.into()),
            None => who.publisher.display_name.clone(),
        })
    }

    /// Offers a membership, and mails it.
    ///
    /// # Errors
    /// `already_member`, `role_too_low`, `quota_exceeded`; 429 `rate_limited` if too many mails
    /// went to the address.
    pub async fn invite<A>(
        &self,
        (context, who): (&Context, &Principal),
        (address, role): (&EmailAddress, Role),
        message: Option<&str>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Invitation) -> Answer + Send + Sync,
    {
        self.need_people()?;
        let publisher = who.scope.publisher();
        let counted = [
            self.mails_to(address, "invitation"),
            self.invitations_of(publisher),
        ];
        self.admit(&counted).await?;
        let text = token::generate(Prefix::Invitation);
        let inviter = self.inviter_name(who).await?;
        let mail = self.invitation_mail((who, &inviter), (address, role), (message, &text));
        let new = NewInvitation {
            address: address.clone(),
            role,
            hash: TokenHash::of_secret(&text),
            mail,
        };
        self.scoped(who)
            .members()
            .invite(context, &new, render)
            .await
    }

    /// Mails an invitation again, with a new link.
    ///
    /// # Errors
    /// `not_found`, `role_too_low`; 429 `rate_limited`.
    pub async fn resend_invitation<A>(
        &self,
        (context, who): (&Context, &Principal),
        id: InvitationId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Invitation) -> Answer + Send + Sync,
    {
        self.need_people()?;
        let scoped = self.scoped(who);
        let invitation = scoped.members().invitation(id).await?;
        let to = self.mails_to(&invitation.address, "invitation");
        let publisher = who.scope.publisher();
        self.admit(&[to, self.invitations_of(publisher)]).await?;
        let text = token::generate(Prefix::Invitation);
        let inviter = self.inviter_name(who).await?;
        let to = (&invitation.address, invitation.role);
        let mail = self.invitation_mail((who, &inviter), to, (None, &text));
        let hash = TokenHash::of_secret(&text);
        scoped
            .members()
            .resend_invitation(context, id, (hash, &mail), render)
            .await
    }

    fn scoped(&self, who: &Principal) -> Scoped {
        self.store.scoped(&who.scope)
    }

    /// Looks at the invitation of a mailed link.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`.
    pub async fn open_invitation(&self, text: &str) -> Result<OwnInvitation, StoreError> {
        let hash = invitation_hash(text)?;
        let found = self.store.identity().invitation_of_link(&hash).await?;
        Ok(found.map_err(|fault| problem_of(Refusal::Token(fault)))?)
    }

    /// Accepts an invitation by its mailed link, and signs the person in as the user who has its
    /// address.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`, `inviter_lost_rights`, `user_disabled`,
    /// `quota_exceeded`.
    pub async fn accept_invitation(
        &self,
        context: &Context,
        text: &str,
        old: Option<&SignedIn>,
    ) -> Result<(Accepted, NewBrowserSession), StoreError> {
        let hash = invitation_hash(text)?;
        let begun = self.begin_session(SignInMethod::Invitation, None);
        let mut accepted = self
            .store
            .identity()
            .accept_invitation(context, &hash, &begun.new)
            .await?;
        let sign_in = accepted.sign_in.take().ok_or(domain::Code::Internal)?;
        let session = self.welcome(context, begun.cookie, sign_in, old).await?;
        Ok((accepted, session))
    }

    /// The invitations that wait for a person.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn own_invitations(&self, who: &SignedIn) -> Result<Vec<OwnInvitation>, StoreError> {
        self.store.identity().own_invitations(&who.user).await
    }

    /// Accepts an invitation as a signed-in person whose verified address it names.
    ///
    /// # Errors
    /// `not_found`, `link_used`, `link_expired`, `inviter_lost_rights`, `quota_exceeded`.
    pub async fn accept_own_invitation(
        &self,
        context: &Context,
        who: &SignedIn,
        id: InvitationId,
    ) -> Result<Accepted, StoreError> {
        let identity = self.store.identity();
        identity
            .accept_own_invitation(context, who.user.id, id)
            .await
    }
}

fn invitation_hash(text: &str) -> Result<TokenHash, domain::Problem> {
    if token::recognise(text) == Some(Prefix::Invitation) {
        Ok(TokenHash::of(text))
    } else {
        Err(domain::Code::LinkInvalid.into())
    }
}
