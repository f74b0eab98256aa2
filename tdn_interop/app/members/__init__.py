"""Who belongs to the mesh: enrolment, certificates, tops that trust each other, revocation."""
