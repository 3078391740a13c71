// SPDX-License-Identifier: Apache-2.0

// Package upstream keeps the module that holds the definitions of KEP-1645 among the requirements of this one.
package upstream

import _ "sigs.k8s.io/mcs-api/config/crd"
