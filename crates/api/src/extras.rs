//! What somebody declares of a twin, on top of what is observed on its host.

use model::Fields;
use serde::{Deserialize, Serialize};

/// Bytes of one declaration.
pub const MAX_EXTRA: usize = 64 << 10;

/// What is to be of one thing. Without anything: that it is to be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewExtra {
    /// It is not to be in the twin.
    pub gone: bool,
    /// Fields as a host's state has them; each goes before the observed one.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub fields: Fields,
}

/// One declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinExtra {
    /// `service`, `process`, `container` or `dependency`.
    pub kind: String,
    pub name: String,
    pub gone: bool,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub fields: Fields,
}

/// All that was declared of a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinExtras {
    pub twin: String,
    pub extras: Vec<TwinExtra>,
}
