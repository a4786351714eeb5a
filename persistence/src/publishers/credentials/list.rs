//! The list of a publisher's credentials.

use domain::credential::CredentialKind;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryResult};
use uuid::Uuid;

use super::{Credential, credential_of};
use crate::{
    publishers::Credentials,
    store::{
        Scoped,
        entity::credentials,
        error::{Result, StoreError},
        page::{Page, PageRequest},
        sql::padded,
        walk::{Check, Path, Span, Walk},
    },
};

impl Credentials<Scoped> {
    /// The publisher's credentials that are not revoked, newest first.
    pub async fn credentials(
        &self,
        kind: Option<CredentialKind>,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Credential, Uuid>, StoreError> {
        use credentials::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        // A legacy token has both rights, whatever its kind column says.
        let kinds = CredentialKind::ALL.into_iter().filter(|of| match kind {
            Some(CredentialKind::Admin | CredentialKind::Runner) => of.is_token(),
            Some(secret) => *of == secret,
            None => true,
        });
        let kinds = kinds.map(|kind| kind.as_str().into());
        let path = Path::by("credentials_live", &["kind"], kinds);
        let grant = match kind {
            Some(CredentialKind::Admin) => Some("grants_admin"),
            Some(CredentialKind::Runner) => Some("grants_runner"),
            _ => None,
        };
        let wants =
            |row: &QueryResult| -> Result<bool> { Ok(row.try_get("", grant.unwrap_or_default())?) };
        let walk = Walk {
            check: grant.map(|_| Check {
                columns: &["grants_admin", "grants_runner"],
                wants: &wants,
            }),
            ..Walk::over("credentials", owner, vec![path.only("revoked_at IS NULL")])
        };
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let rows = credentials::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        Page::of_key_page(found, rows, |row| row.id).try_map(credential_of)
    }
}
