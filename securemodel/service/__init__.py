"""An inference service that strangers ask: HTTP for clients, agreement among parties, an engine process for each lane."""
