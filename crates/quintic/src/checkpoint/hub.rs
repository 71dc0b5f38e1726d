//! Models by repository id.
