//! What planes keep in memory beside the database.
//!
//! The store holds it, and tells it of commits and changes, without knowing what it is. So the
//! planes build on the store, and the store on none of them.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
};

use uuid::Uuid;

use crate::store::effects::Effects;

/// What a plane keeps in memory as long as the store is open. There is one of each type.
pub(crate) trait PlaneState: Any + Send + Sync {
    /// A transaction of this process was committed.
    fn committed(&self, _effects: &Effects) {}

    /// What is kept of a publisher's credentials, accounts and trains holds no more.
    fn forget(&self, _publisher: Uuid) {}

    /// The same of everybody's.
    fn forget_all(&self) {}

    /// The time was set.
    fn time_was_set(&self) {}
}

/// Those of all planes.
#[derive(Default)]
pub(crate) struct PlaneStates(HashMap<TypeId, Box<dyn PlaneState>>);

impl PlaneStates {
    /// Adds one.
    pub(crate) fn with<S: PlaneState>(mut self, state: S) -> Self {
        self.0.insert(TypeId::of::<S>(), Box::new(state));
        self
    }

    /// The one of that type.
    pub(crate) fn get<S: PlaneState>(&self) -> &S {
        let state = self.0.get(&TypeId::of::<S>());
        let state = state.and_then(|state| (state.as_ref() as &dyn Any).downcast_ref());
        state.expect("whoever opens the store adds the state of every plane")
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &dyn PlaneState> {
        self.0.values().map(Box::as_ref)
    }
}
