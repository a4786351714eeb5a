//! Handles of planes: `scoped.webhooks()`, `system.trains()`. A plane's operations are methods of its
//! handle, so that a call names its plane, and none has to know the other planes' methods.

/// Declares a plane's handle over [`Scoped`](crate::Scoped) or [`System`](crate::System), whose own
/// methods it has, too; and for each of those that is listed, the method that makes the handle.
macro_rules! handle {
    ($doc:literal, $name:ident, $($base:ident :: $method:ident),+) => {
        #[doc = $doc]
        #[derive(Clone)]
        pub struct $name<Of>(Of);

        impl<Of> std::ops::Deref for $name<Of> {
            type Target = Of;

            fn deref(&self) -> &Of {
                &self.0
            }
        }

        $(
            impl crate::store::$base {
                #[doc = $doc]
                #[must_use]
                pub fn $method(&self) -> $name<Self> {
                    $name(self.clone())
                }
            }
        )+
    };
}

pub(crate) use handle;
